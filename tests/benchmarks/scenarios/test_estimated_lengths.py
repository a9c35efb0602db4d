"""Estimated lengths: texts cut by words, and the tokens that a server counts in them shared out."""

from __future__ import annotations

from dataclasses import replace

import pytest

from benchmarks.scenarios import scenarios
from benchmarks.scenarios.estimated_lengths import EstimatedCorpus, probe, recount, tokens_per_word
from benchmarks.scenarios.scenarios import by_name, make


def test_without_a_tokenizer_texts_are_cut_by_words() -> None:
    texts = EstimatedCorpus(1.5).texts([32, 152, 5])
    assert [len(text.split()) for text in texts] == [20, 100, 2]


def test_the_servers_count_of_the_probe_gives_the_tokens_of_a_word() -> None:
    assert [len(text.split()) for (text,) in probe("embed").texts] == [100]
    assert tokens_per_word(152) == 1.5
    assert tokens_per_word(0) == 1.6  # the server does not tell


def test_the_servers_count_of_a_request_is_shared_out_among_its_texts() -> None:
    (mixed,) = by_name(["mixed"])
    requests = make(replace(mixed, num_requests=8), EstimatedCorpus(1.0), max_tokens=200)
    words = [[len(text.split()) for text in texts] for texts in requests.texts]
    recounted = recount(requests, [sum(lengths) for lengths in words])
    assert recounted.num_tokens == tuple(sum(lengths) for lengths in words)
    flat = [length for lengths in words for length in lengths]
    differences = [abs(length - count) for length, count in zip(recounted.lengths, flat, strict=True)]
    assert max(differences) <= 3  # two special tokens, which were not counted, and rounding
    assert abs(sum(recounted.lengths) - sum(recounted.num_tokens)) <= len(flat) / 2
    assert recounted.longest == max(recounted.lengths)


@pytest.mark.parametrize("name", ["query-20", "mixed", "rerank-10"])
def test_estimated_lengths_are_called_so(name: str) -> None:
    (scenario,) = by_name([name])
    requests = make(replace(scenario, num_requests=2), EstimatedCorpus(1.6), max_tokens=512)
    few = recount(requests, [8 * items for items in requests.num_items])
    assert scenarios.words(few).endswith("; lengths by words, about so many tokens each")


def test_requests_stay_as_they_are_where_the_server_does_not_count() -> None:
    (scenario,) = by_name(["query-20"])
    requests = make(replace(scenario, num_requests=2), EstimatedCorpus(1.6), max_tokens=512)
    assert recount(requests, [12, 0]) == requests
