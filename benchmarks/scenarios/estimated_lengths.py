"""Texts for a server whose tokenizer is not here: cut by words, with the tokens that the server counts in them."""

from __future__ import annotations

import sysconfig
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from benchmarks.scenarios.scenarios import Kind, Requests, Scenario
from pipelines.datasets.docstrings import docstrings

PROBE_WORDS = 100
USUAL_TOKENS_PER_WORD = 1.6  # docstrings hold identifiers, which fall into several tokens
NUM_SPECIAL = 2


class EstimatedCorpus:
    """As corpus.Corpus, of about the tokens that are asked for."""

    num_special = NUM_SPECIAL
    is_exact = False

    def __init__(self, tokens_per_word: float, *, stdlib: Path | None = None) -> None:
        self._ratio = tokens_per_word
        texts = docstrings(stdlib or Path(sysconfig.get_paths()["stdlib"]))
        self._words = " ".join(docstring.text for docstring in texts).split()

    def texts(self, lengths: Sequence[int], *, seed: int = 0) -> list[str]:
        order = np.random.default_rng(seed).permutation(len(lengths))
        step = len(self._words) / max(1, len(lengths))
        texts = []
        for length, place in zip(lengths, (order * step).astype(int).tolist(), strict=True):
            num_words = max(1, round((length - NUM_SPECIAL) / self._ratio))
            start = min(place, max(0, len(self._words) - num_words))
            texts.append(" ".join(self._words[start : start + num_words]))
        return texts

    def count_pair(self, query: str, passage: str) -> int:
        return round(len(f"{query} {passage}".split()) * self._ratio) + NUM_SPECIAL + 1


def probe(task: str) -> Requests:
    """One request of PROBE_WORDS words: what a server counts in it gives its tokens per word."""
    (text,) = EstimatedCorpus(1.0).texts([PROBE_WORDS + NUM_SPECIAL])
    kind: Kind = "rerank" if task == "rerank" else "passage"
    scenario = Scenario(name="probe", kind=kind, num_tokens=PROBE_WORDS, batch=1, concurrency=(1,), num_requests=1)
    return Requests(
        scenario=scenario, texts=((text,),), queries=("a",), num_items=(1,), num_tokens=(0,), longest=0, is_exact=False
    )


def tokens_per_word(num_tokens: int) -> float:
    """num_tokens: of the probe; what docstrings usually have where a server does not tell."""
    return (num_tokens - NUM_SPECIAL) / PROBE_WORDS if num_tokens > PROBE_WORDS // 2 else USUAL_TOKENS_PER_WORD


def recount(requests: Requests, num_tokens: Sequence[int]) -> Requests:
    """The same requests with the server's count of each; as they were where it does not tell.

    A server counts the items of a request together: each has its estimated share of that.
    """
    if not all(num_tokens):
        return requests
    ratios = np.repeat(np.array(num_tokens) / requests.num_tokens, requests.num_items)
    lengths = np.maximum(1, np.rint(ratios * requests.lengths).astype(int)).tolist()
    return replace(requests, num_tokens=tuple(num_tokens), longest=max(lengths), lengths=tuple(lengths))
