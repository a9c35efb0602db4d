"""nDCG@10 and its interval: places, ties, grades, and what chance explains."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from pipelines.datasets import retrieval
from pipelines.errors import GateError


def unit(*degrees: float) -> np.ndarray:
    radians = np.deg2rad(np.array(degrees))
    return np.stack([np.cos(radians), np.sin(radians)], axis=1).astype(np.float32)


def beir(folder: Path, **files: str) -> Path:
    content = {
        "corpus.jsonl": "\n".join(
            json.dumps({"_id": f"d{i}", "title": f"T{i}", "text": f"text {i}"}) for i in range(3)
        ),
        "queries.jsonl": "\n".join(json.dumps({"_id": f"q{i}", "text": f"query {i}"}) for i in range(3)),
        "qrels/test.tsv": "query-id\tcorpus-id\tscore\nq0\td1\t1\nq2\td0\t2\nq2\td2\t0\n",
        **{name.replace("__", "/").replace("_", "."): text for name, text in files.items()},
    }
    for name, text in content.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    return folder


def test_the_answer_at_the_first_place_scores_one_and_at_the_second_less():
    values = retrieval.ndcg_at_10(unit(0, 90), unit(1, 50), ({0: 1}, {0: 1}))
    assert values.tolist() == pytest.approx([1.0, 1 / np.log2(3)])


def test_an_answer_beyond_the_tenth_place_scores_nothing():
    passages = unit(*range(1, 13))
    values = retrieval.ndcg_at_10(unit(0), passages, ({9: 1},))
    beyond = retrieval.ndcg_at_10(unit(0), passages, ({10: 1},))
    assert values[0] == pytest.approx(1 / np.log2(11))
    assert beyond[0] == 0


def test_the_length_of_a_vector_does_not_change_its_rank():
    passages = unit(5, 10) * np.array([[0.01], [100.0]], dtype=np.float32)
    assert retrieval.search(unit(0), passages, 10).tolist() == [[0, 1]]


def test_of_equally_near_passages_the_first_listed_ranks_first_whatever_their_names():
    passages = np.repeat(unit(30), 12, axis=0)
    assert retrieval.search(unit(0), passages, 10).tolist() == [list(range(10))]
    assert retrieval.ndcg_at_10(unit(0), passages, ({0: 1},))[0] == 1
    assert retrieval.ndcg_at_10(unit(0), passages, ({9: 1},))[0] == pytest.approx(1 / np.log2(11))


def test_a_better_grade_counts_for_more():
    graded = retrieval.ndcg_at_10(unit(0), unit(1, 2), ({0: 1, 1: 3},))
    assert 0 < graded[0] < 1
    assert retrieval.ndcg_at_10(unit(0), unit(2, 1), ({0: 1, 1: 3},))[0] == 1


def test_a_drop_has_an_interval_that_is_the_same_at_every_run():
    reference, candidate = np.ones(500), np.where(np.arange(500) % 10 == 0, 0.5, 1.0)
    drop = retrieval.drop(reference, candidate)
    assert drop == retrieval.drop(reference, candidate)
    assert drop.mean == pytest.approx(0.05)
    assert 0.03 < drop.low < drop.mean < drop.high < 0.07


def test_the_interval_of_a_few_flips_in_both_directions_includes_no_drop():
    reference, candidate = np.ones(500), np.ones(500)
    candidate[:3], reference[3:5] = 0.63, 0.63
    drop = retrieval.drop(reference, candidate)
    assert drop.mean > 0
    assert drop.low < 0 < drop.high


def test_docstrings_become_a_set_with_one_answer_each():
    found = retrieval.parse({"queries": ["a", "b"], "passages": ["x", "y"], "relevant": [[0], [1]]})
    assert found.relevant == ({0: 1}, {1: 1})


def test_a_beir_folder_becomes_a_set_of_its_labelled_queries(tmp_path: Path):
    found = retrieval.read_beir(beir(tmp_path))
    assert found.queries == ("query 0", "query 2")
    assert found.passages == ("T0 text 0", "T1 text 1", "T2 text 2")
    assert found.relevant == ({1: 1}, {0: 2})


def test_a_folder_without_the_files_says_which_and_what_the_layout_is(tmp_path: Path):
    with pytest.raises(GateError, match=r"(?s)corpus.jsonl: is missing.*qrels/test.tsv: is missing.*BEIR's layout"):
        retrieval.read_beir(tmp_path)


def test_everything_wrong_in_a_beir_folder_is_told_at_once_with_its_line(tmp_path: Path):
    folder = beir(
        tmp_path,
        corpus_jsonl='{"_id": "d0", "text": "a"}\nnot json\n{"_id": "d0", "text": "b"}\n{"_id": 4, "text": "c"}',
        qrels__test_tsv="query-id\tcorpus-id\tscore\nq0\td7\t1\nq9\td0\t1\nq0 d0 1\n",
    )
    with pytest.raises(GateError) as caught:
        retrieval.read_beir(folder)
    message = str(caught.value)
    assert "corpus.jsonl line 2: is not JSON" in message
    assert "corpus.jsonl line 3: _id 'd0' is there twice" in message
    assert 'corpus.jsonl line 4: needs "_id"' in message
    assert "qrels/test.tsv line 2: passage 'd7' is not in corpus.jsonl" in message
    assert "qrels/test.tsv line 3: query 'q9' is not in queries.jsonl" in message
    assert "qrels/test.tsv line 4: needs query-id, corpus-id and a whole-number score" in message


def test_a_set_in_which_nothing_is_an_answer_is_refused(tmp_path: Path):
    with pytest.raises(GateError, match="no query has an answer"):
        retrieval.read_beir(beir(tmp_path, qrels__test_tsv="query-id\tcorpus-id\tscore\nq0\td1\t0\n"))
