"""An overload is judged by goodput, by how it refuses, by wrong answers and by memory."""

from __future__ import annotations

import pytest

from benchmarks import overload
from benchmarks.runs.experiment import Findings
from benchmarks.watch.memory import MIB
from tests.support.recordings import recording, watch


def overloaded(status: list[int], took: list[float]) -> Findings:
    run = recording([0] * len(status), status, took, wall_s=1.0)
    return overload.judged(
        run,
        watch([MIB] * 30),
        scenario="mixed",
        tokens=[7],
        capacity=10.0,
        capacity_tokens=70.0,
        rate=40.0,
        seconds=1.0,
        after=10.0,
    )


def test_an_overload_with_quick_refusals_and_full_goodput_passes() -> None:
    findings = overloaded([200] * 10 + [429] * 30, [0.5] * 10 + [0.001] * 30)
    assert [check.passed for check in findings.checks] == [True, True, True, True]


@pytest.mark.parametrize(
    ("status", "took", "fails"),
    [
        ([200] * 9 + [429] * 30, [0.5] * 9 + [0.001] * 30, "goodput"),
        ([200] * 10 + [429] * 30, [1.5] * 10 + [0.001] * 30, "goodput"),  # answered after the load had ended
        ([200] * 10 + [429] * 30, [0.5] * 10 + [0.051] * 30, "refusals"),
        ([200] * 10 + [429] * 29 + [503], [0.5] * 10 + [0.001] * 30, "refusals"),
        ([200] * 10 + [429] * 29 + [0], [0.5] * 10 + [0.001] * 30, "refusals"),
        ([200] * 40, [0.5] * 40, "refusals"),  # nothing was refused: it was no overload
    ],
)
def test_an_overload_that_goes_wrong_fails(status: list[int], took: list[float], fails: str) -> None:
    assert [c.name for c in overloaded(status, took).checks if not c.passed] == [f"overload, mixed: {fails}"]
