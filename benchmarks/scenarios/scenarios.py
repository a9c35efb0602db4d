"""The scenarios, by name, and their requests: what is sent, how many items and tokens each request holds."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from benchmarks.scenarios.corpus import TextSource
from pipelines.errors import EngineryError

Kind = Literal["query", "passage", "rerank", "mixed"]
PAIR_QUERY_TOKENS = 20  # of a rerank request's query, special tokens included
LEAST_MIXED_TOKENS = 5
MIXED_MEDIAN, MIXED_SIGMA, MAX_MIXED_BATCH = 48, 1.0, 8


@dataclass(frozen=True, kw_only=True)
class Scenario:
    """One shape of load."""

    name: str
    kind: Kind
    num_tokens: int  # of each text, or of each pair; of the mixed stream the longest
    batch: int  # texts or passages of one request; of the mixed stream the most
    concurrency: tuple[int, ...]
    num_requests: int  # distinct ones, sent in turn

    @property
    def task(self) -> str:
        return "rerank" if self.kind == "rerank" else "embed"


# After NVIDIA's own benchmark of its embedding and reranking NIMs, and a stream that no shape was chosen for.
SCENARIOS = (
    Scenario(
        name="query-20", kind="query", num_tokens=20, batch=1, concurrency=(1, 3, 5, 7, 9, 11, 13, 15), num_requests=256
    ),
    Scenario(name="passage-300", kind="passage", num_tokens=300, batch=64, concurrency=(1, 3, 5), num_requests=8),
    Scenario(name="passage-512", kind="passage", num_tokens=512, batch=64, concurrency=(1, 3, 5), num_requests=8),
    Scenario(name="mixed", kind="mixed", num_tokens=512, batch=MAX_MIXED_BATCH, concurrency=(8, 32), num_requests=256),
    Scenario(name="rerank-10", kind="rerank", num_tokens=512, batch=10, concurrency=(1, 3, 5), num_requests=16),
    Scenario(name="rerank-20", kind="rerank", num_tokens=512, batch=20, concurrency=(1, 3, 5), num_requests=16),
    Scenario(name="rerank-40", kind="rerank", num_tokens=512, batch=40, concurrency=(1, 3, 5), num_requests=8),
)


@dataclass(frozen=True, kw_only=True)
class Requests:
    """What a scenario sends. Entry i of each sequence is request i's."""

    scenario: Scenario
    texts: tuple[tuple[str, ...], ...]  # of a rerank request: its passages
    queries: tuple[str, ...]  # of rerank requests, else empty
    num_items: tuple[int, ...]
    num_tokens: tuple[int, ...]  # of all items together, special tokens included
    longest: int  # tokens of the longest item
    lengths: tuple[int, ...] = ()  # tokens of every item of every request, in order
    is_exact: bool = True  # tokens were counted with the model's tokenizer, else estimated


def by_name(names: Sequence[str]) -> list[Scenario]:
    """The scenarios of these names, all for none. Raises EngineryError with the names that there are."""
    scenarios = {scenario.name: scenario for scenario in SCENARIOS}
    if unknown := [name for name in names if name not in scenarios]:
        raise EngineryError(f"no scenario is called {', '.join(unknown)}; there are {', '.join(scenarios)}")
    return [scenarios[name] for name in names] if names else list(SCENARIOS)


def make(scenario: Scenario, corpus: TextSource, *, max_tokens: int, seed: int = 0) -> Requests:
    """Texts for a scenario, cut to what the model takes (max_tokens) where that is less."""
    longest = min(scenario.num_tokens, max_tokens)
    if scenario.kind == "rerank":
        return _rerank(scenario, corpus, longest, seed)
    if scenario.kind == "mixed":
        sizes, lengths = mixed_lengths(scenario.num_requests, longest, seed)
    else:
        sizes = [scenario.batch] * scenario.num_requests
        lengths = [longest] * sum(sizes)
    flat = corpus.texts(lengths, seed=seed)
    bounds = np.concatenate(([0], np.cumsum(sizes))).tolist()
    pieces = list(itertools.pairwise(bounds))
    return Requests(
        scenario=scenario,
        texts=tuple(tuple(flat[low:high]) for low, high in pieces),
        queries=(),
        num_items=tuple(sizes),
        num_tokens=tuple(sum(lengths[low:high]) for low, high in pieces),
        longest=max(lengths),
        lengths=tuple(lengths),
        is_exact=corpus.is_exact,
    )


def mixed_lengths(num_requests: int, longest: int, seed: int) -> tuple[list[int], list[int]]:
    """Batch sizes of requests, and the tokens of all their texts: log-normal, as lengths of real texts are."""
    rng = np.random.default_rng(seed)
    sizes = rng.integers(1, MAX_MIXED_BATCH + 1, num_requests).tolist()
    lengths = rng.lognormal(np.log(MIXED_MEDIAN), MIXED_SIGMA, sum(sizes))
    return sizes, np.clip(np.rint(lengths), LEAST_MIXED_TOKENS, longest).astype(int).tolist()


def _rerank(scenario: Scenario, corpus: TextSource, longest: int, seed: int) -> Requests:
    """Pairs of exactly `longest` tokens: the passage takes what the query leaves."""
    of_query = min(PAIR_QUERY_TOKENS, max(corpus.num_special + 1, longest // 4))
    num_queries, num_passages = scenario.num_requests, scenario.num_requests * scenario.batch
    queries = corpus.texts([of_query] * num_queries, seed=seed)
    pair_special = corpus.count_pair(queries[0], queries[1 % num_queries]) - 2 * (of_query - corpus.num_special)
    of_passage = longest - (of_query - corpus.num_special) - pair_special + corpus.num_special
    passages = corpus.texts([of_passage] * num_passages, seed=seed + 1)
    size = scenario.batch
    return Requests(
        scenario=scenario,
        texts=tuple(tuple(passages[n * size : (n + 1) * size]) for n in range(num_queries)),
        queries=tuple(queries),
        num_items=(size,) * num_queries,
        num_tokens=(size * longest,) * num_queries,
        longest=longest,
        lengths=(longest,) * num_passages,
        is_exact=corpus.is_exact,
    )


def words(requests: Requests) -> str:
    """What a scenario sends."""
    scenario, length = requests.scenario, requests.longest
    if not requests.is_exact:
        note = "; lengths by words, about so many tokens each"
    elif length < scenario.num_tokens and scenario.kind != "mixed":
        note = f" ({scenario.num_tokens} asked, the model takes {length})"
    else:
        note = ""
    if scenario.kind == "mixed":
        mean = sum(requests.lengths) / len(requests.lengths)
        spread = f"{min(requests.lengths)} to {length} tokens, {mean:.0f} on average (log-normal)"
        return f"1 to {scenario.batch} texts of {spread}{note}"
    if scenario.kind == "rerank":
        return f"a query and {scenario.batch} passages, {length} tokens per pair{note}"
    return f"{scenario.batch} text{'s' * (scenario.batch > 1)} of {length} tokens{note}"
