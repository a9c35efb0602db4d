"""The standard library's docstrings: disjoint sets, mixed lengths, the same bytes whatever the order of reading."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from pipelines.datasets import docstrings
from pipelines.datasets.docstrings import Docstring
from pipelines.errors import ExportError


@pytest.fixture(scope="module")
def sets(texts_json: Path) -> dict[str, Any]:
    return json.loads(texts_json.read_bytes())  # type: ignore[no-any-return]


def test_each_set_is_large_enough(sets: dict[str, Any]) -> None:
    assert len(sets["golden"]) >= 256
    assert len(sets["calibration"]) >= 64
    assert len(sets["retrieval"]["queries"]) >= 500


def test_no_text_of_one_set_is_in_another(sets: dict[str, Any]) -> None:
    retrieval = {*sets["retrieval"]["queries"], *sets["retrieval"]["passages"]}
    golden, calibration = set(sets["golden"]), set(sets["calibration"])
    assert not golden & calibration
    assert not golden & retrieval
    assert not calibration & retrieval
    assert len(golden) == len(sets["golden"])


def test_golden_texts_range_from_a_few_words_to_more_than_any_limit(sets: dict[str, Any]) -> None:
    lengths = [len(text.split()) for text in sets["golden"]]
    assert min(lengths) == 3
    assert sum(length >= docstrings.LONG_WORDS for length in lengths) >= 8


def test_the_first_golden_texts_are_as_mixed_as_all_of_them(sets: dict[str, Any]) -> None:
    lengths = [len(text.split()) for text in sets["golden"][:12]]
    assert min(lengths) <= 8
    assert max(lengths) >= 400


def test_every_query_has_one_passage_that_does_not_contain_it(sets: dict[str, Any]) -> None:
    retrieval = sets["retrieval"]
    queries, passages = retrieval["queries"], retrieval["passages"]
    assert len(queries) == len(passages) == len(retrieval["relevant"])
    assert retrieval["relevant"] == [[i] for i in range(len(queries))]
    assert len({query.casefold() for query in queries}) == len(queries)
    assert not [q for q, p in zip(queries, passages, strict=True) if q.casefold() in p.casefold()]


def test_the_same_library_gives_the_same_bytes_whatever_the_order_of_reading() -> None:
    found = [Docstring(module=f"m{i % 7}.py", text=text) for i, text in enumerate(_docstrings(4000))]
    first = docstrings.dump(docstrings.split(found), "3.11.7")
    assert docstrings.dump(docstrings.split(list(reversed(found))), "3.11.7") == first


def test_docstrings_are_read_without_importing_anything(tmp_path: Path) -> None:
    (tmp_path / "json.py").write_text('"""Of the module."""\nraise SystemExit\nclass A:\n  """Of the class."""\n')
    (tmp_path / "email" / "test").mkdir(parents=True)
    (tmp_path / "email" / "test" / "x.py").write_text('"""Of a test."""')
    assert [d.text for d in docstrings.docstrings(tmp_path)] == ["Of the module.", "Of the class."]


def test_an_incomplete_library_is_an_error_that_counts_what_is_there() -> None:
    with pytest.raises(ExportError, match=r"retrieval: 0 texts, at least 500") as error:
        docstrings.split([])
    assert "golden: 0 texts" in str(error.value)
    assert "install a full CPython" in str(error.value)


def _docstrings(number: int) -> list[str]:
    rest = "and this is what it has to say about it, in words that are more than twelve of them"
    return [f"Summary of number {i} here.\n\nDetail {i} {rest * (i % 9)}" for i in range(number)]
