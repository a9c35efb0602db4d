"""Candidates of a query: BM25's best first, equal ones in a stable order."""

from __future__ import annotations

import numpy as np

from pipelines.datasets import rerank
from pipelines.datasets.retrieval import RetrievalSet

LABELLED = RetrievalSet(
    queries=("open a file", "sort a list", "zzz"),
    passages=("the list is sorted", "opens the file for reading", "the same words", "the same words", "a file is open"),
    relevant=({1: 1, 4: 2}, {0: 1}, {2: 1}),
)


def test_candidates_are_bm25s_best_first_and_equal_ones_keep_their_order() -> None:
    found = rerank.candidates(LABELLED, num_queries=3, num_candidates=3)
    assert found.ranking[0, 0] == 4
    assert found.ranking[2].tolist() == [0, 1, 2], "no word of the query occurs: all are equal"
    assert found.pairs()[0] == ("open a file", "a file is open")
    assert len(found.pairs()) == 9
    assert rerank.candidates(LABELLED, num_queries=2, num_candidates=99).ranking.shape == (2, 5)


def test_candidates_of_equal_score_keep_bm25s_order() -> None:
    found = np.array([[7, 3, 5]])
    assert rerank.reranked(found, np.array([[0.5, 0.9, 0.5]], np.float32)).tolist() == [[3, 7, 5]]
