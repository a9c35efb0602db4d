"""Measuring again though nothing changed: what runs, what it says, and what it leaves alone."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from pipelines.dagster.lineage import lineage, stale_partitions
from pipelines.errors import MatrixError
from pipelines.matrix import load as matrices
from pipelines.plan import remeasure
from pipelines.plan.cache_key import Prepared, prepare
from pipelines.plan.graph import Graph, Step
from pipelines.plan.layout import graph
from pipelines.plan.staleness import FORCED, Cause, plan, states
from pipelines.store.store import Record, Store
from tests.support.fleets import CPU, H100, L40S, Fleet
from tests.support.plans import WORKER, built, stale, words
from tests.support.services import ROOT

STEP = "measure/tiny__fp32__onnx"


@pytest.fixture
def planned(tmp_path: Path, tiny_model: Path) -> Graph:
    matrix = matrices.load(Fleet.at(tmp_path / "fleet", tiny_model).folder / "matrix.yaml")
    return graph(matrix, matrix.rows, WORKER)


def record(made_by: str, prepared: Prepared, store: Store) -> Record:
    return Record(
        key=prepared.key,
        stage=prepared.step.stage,
        subject=prepared.step.subject,
        key_inputs=prepared.key_inputs,
        outputs={"metrics.json": store.put_bytes(made_by.encode())},
        facts={},
        duration_s=0,
        peak_rss_bytes=0,
    )


def test_globs_name_the_measurements_of_rows_and_nothing_else(planned: Graph) -> None:
    assert remeasure.steps(planned, None) == frozenset()
    assert remeasure.steps(planned, ["*__fp32__*"]) == {STEP}
    assert remeasure.steps(planned, ()) == {STEP, "measure/tiny__fp16__typed-onnx"}


def test_a_glob_that_names_nothing_or_only_rows_of_other_machines_is_refused(planned: Graph) -> None:
    with pytest.raises(MatrixError) as refused:
        remeasure.steps(planned, ["*__h100__*", "small*", L40S])
    assert [problem.partition(": ")[0] for problem in refused.value.problems] == [
        "--remeasure *__h100__*",
        "--remeasure small*",
    ]
    assert f"{H100} needs a worker with h100" in str(refused.value)


def test_a_plan_says_that_it_is_asked_for_and_asks_for_nothing_itself(planned: Graph, tmp_path: Path) -> None:
    store = Store(tmp_path / "store")
    built(planned, store)
    found = states(planned, store, {STEP})
    again = {name: words(state) for name, state in found.items() if state.record is None}
    assert again == {STEP: [FORCED.words], f"judge/{CPU}": [f"{STEP} is built first"]}
    assert stale(planned, store) == set()


def test_what_was_asked_for_is_due_for_that_reason_until_it_is_made(planned: Graph, tmp_path: Path) -> None:
    store = Store(tmp_path / "store")
    built(planned, store)
    store.force("measure", STEP.removeprefix("measure/"))
    store.force("measure", STEP.removeprefix("measure/"))  # forced twice before it ran: it runs once
    assert states(planned, store)[STEP].reasons == (FORCED,)
    due = stale_partitions(plan(planned, store), lineage(planned))
    assert {partition: why.causes for partition, why in due.items()} == {
        ("verdict", CPU): {Cause.FORCED},
        ("manifest", "tiny"): {Cause.FORCED},
        ("image", "tiny"): {Cause.FORCED},
        ("publication", "tiny"): {Cause.FORCED},
    }
    built(planned, store)
    assert states(planned, store)[STEP].record is not None


def test_who_measures_late_cannot_bring_the_generation_before_back(tmp_path: Path) -> None:
    store, step = (
        Store(tmp_path),
        Step(stage="measure", subject="s", params={"row": 1}, inputs={}, toolchain={}, code={}),
    )
    busy = prepare(step, {}, store)
    first = store.write_record(record("busy", busy, store))
    store.force("measure", "s")
    second = store.write_record(record("idle", prepare(step, {}, store), store))
    store.write_record(record("late", busy, store))
    assert prepare(step, {}, store).record == second
    assert store.record(first.key) == first  # and nothing of what was is lost


@pytest.mark.slow
def test_a_row_is_measured_and_judged_again_its_engine_is_not_built_again(tmp_path: Path, tiny_model: Path) -> None:
    fleet = Fleet.at(tmp_path / "fleet", tiny_model)
    places = [f"--{name}={fleet.folder / name}" for name in ("store", "dist")]
    matrix = ["-m", str(fleet.folder / "matrix.yaml"), "--select", CPU]

    def enginery(verb: str, *arguments: str) -> str:
        command = [sys.executable, "-m", "pipelines.cli", verb, *matrix, *arguments]
        environ = {**os.environ, "PYTHONPATH": str(ROOT), "COLUMNS": "200"}
        return subprocess.run(command, check=True, timeout=120, env=environ, capture_output=True, text=True).stdout

    def steps() -> dict[str, bytes]:
        return {path.name: path.read_bytes() for path in (fleet.folder / "store" / "steps").iterdir()}

    enginery("build", "--no-image", *places)
    before = steps()
    planned = json.loads(enginery("plan", "--json", places[0], "--remeasure"))
    assert {step["step"]: step["why"] for step in planned["steps"] if step["state"] == "build"} == {
        STEP: [FORCED.words],
        f"judge/{CPU}": [f"{STEP} is built first"],
    }
    assert "2 steps built." in enginery("build", "--no-image", *places, "--remeasure", "*__cpu-x86-64__*")
    after = steps()
    assert before.items() < after.items()
    assert sorted(json.loads(after[name])["stage"] for name in after.keys() - before.keys()) == ["judge", "measure"]
    assert "Nothing to build" in enginery("build", "--no-image", *places)
