"""Verdicts for tests of what comes after the gate."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pipelines.gate.verdict import Check, Verdict
from pipelines.store.files import file_digest

PASSED = Check(name="cosine_mean", value=0.999, threshold=0.99, passed=True, why="")
FAILED = Check(name="cosine_mean", value=0.88, threshold=0.98, passed=False, why="cosine 0.88 is below 0.98")


def verdict(row: str, engine: Path, *, passed: bool = True, **changed: Any) -> Verdict:
    """The verdict of an engine's bytes."""
    fields: dict[str, Any] = {
        "row": row,
        "passed": passed,
        "evaluated": "typed-onnx",
        "judged_with": "onnxruntime 1.31.1",
        "checks": (PASSED if passed else FAILED,),
        "digests": {"engine": file_digest(engine)},
        "proof_min_cosine": 0.98,
    }
    return Verdict(**{**fields, **changed})
