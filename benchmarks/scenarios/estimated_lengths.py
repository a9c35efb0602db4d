"""Texts for a server whose tokenizer is not at hand: cut by words, their tokens counted by the server itself."""

from __future__ import annotations

import sysconfig
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import msgspec
import numpy as np

from benchmarks.scenarios.scenarios import Requests, embeddings_body, ranking_body
from benchmarks.servers.endpoint import Endpoint
from pipelines.datasets.docstrings import docstrings

PROBE_WORDS = 100
USUAL_TOKENS_PER_WORD = 1.6  # docstrings hold identifiers, which fall into several tokens


class _Usage(msgspec.Struct):
    prompt_tokens: int | None = None
    total_tokens: int | None = None


class _Answer(msgspec.Struct):
    usage: _Usage | None = None


class WordCorpus:
    """As corpus.Corpus, of about the wanted lengths."""

    num_special = 2

    def __init__(self, tokens_per_word: float, *, stdlib: Path | None = None) -> None:
        self._ratio = tokens_per_word
        found = docstrings(stdlib or Path(sysconfig.get_paths()["stdlib"]))
        self._words = " ".join(docstring.text for docstring in found).split()

    def texts(self, lengths: Sequence[int], *, seed: int = 0) -> list[str]:
        order = np.random.default_rng(seed).permutation(len(lengths))
        step = len(self._words) / max(1, len(lengths))
        texts = []
        for length, place in zip(lengths, (order * step).astype(int).tolist(), strict=True):
            num_words = max(1, round((length - self.num_special) / self._ratio))
            at = min(place, max(0, len(self._words) - num_words))
            texts.append(" ".join(self._words[at : at + num_words]))
        return texts

    def count_pair(self, query: str, passage: str) -> int:
        return round(len(f"{query} {passage}".split()) * self._ratio) + self.num_special + 1


def tokens_per_word(endpoint: Endpoint, tasks: set[str]) -> float:
    """As the server counts them; what docstrings usually have where it does not tell."""
    (text,) = WordCorpus(1.0).texts([PROBE_WORDS + WordCorpus.num_special])
    if "embed" in tasks:
        path, body = "embeddings", embeddings_body([text], endpoint.model, input_type="passage")
    else:
        path, body = "ranking", ranking_body("a", [text], endpoint.model)
    found = _tokens(endpoint.post(f"{endpoint.prefix}/{path}", body))
    return (found - WordCorpus.num_special) / PROBE_WORDS if found > PROBE_WORDS // 2 else USUAL_TOKENS_PER_WORD


def counted(endpoint: Endpoint, requests: Requests) -> Requests:
    """The same requests with the tokens that the server counts in each; as they were where it does not tell.

    A server counts a request's items together: each item has its estimated share of that.
    """
    path = endpoint.path(requests)
    counts = [_tokens(endpoint.post(path, body)) for body in endpoint.bodies(requests)]
    if not all(counts):
        return requests
    ratios = np.repeat(np.array(counts) / requests.num_tokens, requests.num_items)
    lengths = np.maximum(1, np.rint(ratios * requests.lengths).astype(int)).tolist()
    return replace(requests, num_tokens=tuple(counts), longest=max(lengths), lengths=tuple(lengths))


def _tokens(body: bytes) -> int:
    try:
        usage = msgspec.json.decode(body, type=_Answer).usage
    except msgspec.DecodeError:
        return 0
    return (usage.prompt_tokens or usage.total_tokens or 0) if usage else 0
