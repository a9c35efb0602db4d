"""verdict.json: what it promises those who read it, and back again."""

from __future__ import annotations

import json
from pathlib import Path

from pipelines.gate.verdict import dump, load
from tests.support.verdicts import verdict


def test_a_verdict_survives_its_file(tmp_path: Path) -> None:
    (tmp_path / "engine").write_text("an engine")
    judged = verdict("m__l4__fp16__tp1", tmp_path / "engine", passed=False)
    assert load(dump(judged)) == judged
    assert dump(load(dump(judged))) == dump(judged)


def test_the_file_has_the_names_and_the_reasons_that_its_readers_know(tmp_path: Path) -> None:
    (tmp_path / "engine").write_text("an engine")
    content = json.loads(dump(verdict("m__l4__fp16__tp1", tmp_path / "engine", passed=False)))
    assert sorted(content) == [
        "checks",
        "digests",
        "judged_on",
        "judged_with",
        "passed",
        "proof_min_cosine",
        "reasons",
        "remedies",
        "row",
        "schema_version",
    ]
    assert content["judged_on"] == "typed-onnx"
    assert content["reasons"] == ["cosine 0.88 is below 0.98"]
