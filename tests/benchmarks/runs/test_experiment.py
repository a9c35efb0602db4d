"""The experiments run against a real server with a tiny model."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from benchmarks import overhead, overload, padding, soak
from benchmarks.runs import experiment


@pytest.mark.slow
def test_overload_padding_and_soak_run_against_a_real_server(
    embed_dist: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(overload, "CAPACITY_S", 0.3)
    setup = experiment.setup(embed_dist, tmp_path, lambda _: None)
    of_overload = overload.run(setup, seconds=2.0, times=3.0, scenario="query-20")
    assert [c.passed for c in of_overload.checks if c.name.endswith("wrong or swapped vectors")] == [True]
    of_padding = padding.run(setup, seconds=2.0)
    assert {table.title.partition(":")[0] for table in of_padding.tables} == {"Padding", "Starvation"}
    assert np.isfinite(float(of_padding.checks[0].value.split("%")[0]))
    of_soak = soak.run(setup, minutes=0.1)
    assert of_soak.checks[1].passed, of_soak.checks[1].value


@pytest.mark.slow
def test_the_overhead_is_measured_against_a_server_whose_engine_costs_nothing(
    embed_dist: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(overhead, "ROUND_S", 0.2)
    findings = overhead.run(experiment.setup(embed_dist, tmp_path, lambda _: None), rounds=1)
    (table,) = findings.tables
    assert [row[0] for row in table.rows] == [f"{n} at a time" for n in overhead.CONCURRENCY]
    assert findings.notes == ()
