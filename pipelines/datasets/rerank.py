"""What a reranker is judged on: the labelled queries, each with the candidates that a first search (BM25) finds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pipelines.datasets.retrieval import RetrievalSet

FIRST_STAGE = "bm25"
# Enough for the gate: a cross-encoder runs one pair for each candidate of each query. Tokens are of a pair.
NUM_QUERIES, NUM_CANDIDATES, MAX_TOKENS = 128, 10, 96


@dataclass(frozen=True, kw_only=True)
class Candidates:
    """Some queries of a labelled set, and for each the passages to rank."""

    queries: tuple[str, ...]
    passages: tuple[str, ...]  # of the whole set
    ranking: NDArray[np.int64]  # (Q, K) indices of passages, BM25's best first
    relevant: tuple[Mapping[int, int], ...]  # per query: passage index -> grade

    def pairs(self) -> list[tuple[str, str]]:
        """Q x K pairs, query by query."""
        return [(q, self.passages[p]) for q, row in zip(self.queries, self.ranking, strict=True) for p in row.tolist()]


def candidates(labelled: RetrievalSet, *, num_queries: int, num_candidates: int) -> Candidates:
    """The first queries of a set with BM25's best passages. The same bytes give the same candidates anywhere."""
    queries = labelled.queries[:num_queries]
    return Candidates(
        queries=queries,
        passages=labelled.passages,
        ranking=search(queries, labelled.passages, num_candidates),
        relevant=labelled.relevant[:num_queries],
    )


def search(queries: Sequence[str], passages: Sequence[str], depth: int) -> NDArray[np.int64]:
    """(Q, min(depth, P)) indices by falling BM25 score; of equal ones the first listed."""
    import bm25s

    index = bm25s.BM25(method="lucene")
    index.index(bm25s.tokenize(list(passages), stopwords="en", show_progress=False), show_progress=False)
    tokens = bm25s.tokenize(list(queries), stopwords="en", return_ids=False, show_progress=False)
    scores = np.stack([index.get_scores(query) if query else np.zeros(len(passages)) for query in tokens])
    # Rounded: the last bits of the sums must not decide between equal passages.
    return np.argsort(-np.round(scores, 4), axis=1, kind="stable")[:, :depth]


def reranked(ranking: NDArray[np.int64], scores: NDArray[np.float32]) -> NDArray[np.int64]:
    """(Q, K) candidates and their scores -> the candidates by falling score; equal ones keep BM25's order."""
    return np.take_along_axis(ranking, np.argsort(-scores, axis=1, kind="stable"), axis=1)
