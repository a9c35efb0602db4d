"""Scenarios: texts of exactly the wanted tokens, real and distinct, the same on every run."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from benchmarks.scenarios import scenarios
from benchmarks.scenarios.corpus import Corpus
from benchmarks.scenarios.scenarios import SCENARIOS, Scenario, by_name, make, mixed_lengths
from pipelines.errors import EngineryError


def small(name: str, num_requests: int = 4) -> Scenario:
    (scenario,) = by_name([name])
    return replace(scenario, num_requests=num_requests)


@pytest.mark.parametrize("scenario", [s.name for s in SCENARIOS if s.task == "embed" and s.kind != "mixed"])
def test_every_text_has_exactly_the_tokens_of_its_scenario(corpus: Corpus, scenario: str) -> None:
    requests = make(small(scenario, 2), corpus, max_tokens=512)
    counted = {corpus.count(text) for texts in requests.texts for text in texts}
    assert counted == {requests.scenario.num_tokens}
    assert set(requests.num_items) == {requests.scenario.batch}
    assert set(requests.num_tokens) == {requests.scenario.batch * requests.scenario.num_tokens}


def test_every_pair_of_a_reranking_has_exactly_the_tokens_of_its_scenario(corpus: Corpus) -> None:
    requests = make(small("rerank-20"), corpus, max_tokens=512)
    pairs = [(q, p) for q, passages in zip(requests.queries, requests.texts, strict=True) for p in passages]
    assert len(pairs) == 80
    assert {corpus.count_pair(query, passage) for query, passage in pairs} == {512}


def test_texts_are_cut_to_what_the_model_takes(corpus: Corpus) -> None:
    requests = make(small("passage-512", 1), corpus, max_tokens=128)
    assert {corpus.count(text) for text in requests.texts[0]} == {128}
    assert requests.longest == 128
    assert "the model takes 128" in scenarios.words(requests)


def test_the_same_arguments_give_the_same_texts_and_no_text_comes_twice(corpus: Corpus) -> None:
    scenario = small("query-20", 256)
    once, again = (make(scenario, corpus, max_tokens=512) for _ in range(2))
    assert once == again
    assert len({text for texts in once.texts for text in texts}) == 256
    assert make(scenario, corpus, max_tokens=512, seed=1) != once


def test_a_text_that_is_too_short_for_one_token_is_refused(corpus: Corpus) -> None:
    with pytest.raises(EngineryError, match="no text of 2 tokens"):
        corpus.texts([2])


def test_the_mixed_stream_has_the_lengths_and_batches_that_it_says(corpus: Corpus) -> None:
    requests = make(small("mixed", 64), corpus, max_tokens=200)
    flat = [text for texts in requests.texts for text in texts]
    assert [corpus.count(text) for text in flat] == list(requests.lengths)
    assert min(requests.lengths) >= 5
    assert max(requests.lengths) <= 200
    assert set(requests.num_items) <= set(range(1, 9))
    assert requests.num_tokens == tuple(sum(corpus.count(text) for text in texts) for texts in requests.texts)


def test_lengths_of_the_mixed_stream_spread_over_their_range() -> None:
    sizes, lengths = mixed_lengths(500, 512, 0)
    assert len(lengths) == sum(sizes)
    assert np.percentile(lengths, 10) < 20
    assert np.percentile(lengths, 90) > 120
    assert max(lengths) == 512


def test_an_unknown_scenario_is_refused_with_those_that_there_are() -> None:
    with pytest.raises(EngineryError, match=r"no scenario is called query-21; there are query-20, passage-300"):
        by_name(["query-20", "query-21"])
