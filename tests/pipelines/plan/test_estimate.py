"""What a plan is expected to take: from a step's own last run, from those like it, and played through side by side."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from pipelines.cli import plan_view
from pipelines.matrix.load import load
from pipelines.matrix.values import Worker
from pipelines.plan import estimate
from pipelines.plan.cache_key import cache_key_inputs
from pipelines.plan.estimate import Estimate
from pipelines.plan.graph import Graph, Ref, Step
from pipelines.plan.layout import graph
from pipelines.plan.staleness import Cause, Reason, Staleness, plan
from pipelines.store.files import key_of
from pipelines.store.store import Record, Store
from tests.support.published import MATRIX, run

WORKER = Worker(
    cpu_arch="x86_64",
    cpu_features=frozenset({"avx2", "fma"}),
    compilers=frozenset({"onnx", "openvino", "tensorrt-rtx", "tensorrt"}),
)

CHANGED = Staleness(reasons=(Reason(cause=Cause.SETTINGS, words="changed"),))


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


def step(name: str, *needs: str, exclusive: bool = False, **params: Any) -> Step:
    stage, _, subject = name.partition("/")
    inputs = {need: Ref(step=need, output="x") for need in needs}
    return Step(stage=stage, subject=subject, params=params, inputs=inputs, toolchain={}, code={}, exclusive=exclusive)


def graph_of(*steps: Step) -> Graph:
    return Graph(matrix=load(MATRIX), steps={each.id: each for each in steps}, rows=())


def took(seconds: float, gib: float = 1.0) -> Estimate:
    return Estimate(duration_s=seconds, peak_rss_bytes=int(gib * 2**30), output_bytes=1000, basis="")


def remember(store: Store, of: Step, seconds: float, inputs: Mapping[str, str] | None = None) -> Record:
    key_inputs = cache_key_inputs(of, inputs or {})
    with store.workspace() as folder:
        (folder / "x").write_text(f"{of.id} {seconds}")
        blob = store.put(folder / "x")
    record = Record(
        key=key_of(key_inputs),
        stage=of.stage,
        subject=of.subject,
        key_inputs=key_inputs,
        outputs={"x": blob},
        facts={},
        duration_s=seconds,
        peak_rss_bytes=2**30,
    )
    store.write_record(record)
    return record


def test_a_steps_own_last_run_tells_most_then_those_like_it_then_its_stage(store: Store) -> None:
    remember(store, step("compile/a", compiler="x", precision="fp16", n=1), 10)
    remember(store, step("compile/b", compiler="x", precision="fp16"), 20)
    remember(store, step("compile/c", compiler="y", precision="fp8"), 90)
    wanted = {
        "compile/a": (10, "its last run"),
        "compile/new": (15, "2 like it"),
        "compile/other": (20, "3 runs of compile"),
    }
    steps = graph_of(
        step("compile/a", compiler="x", precision="fp16", n=2),
        step("compile/new", compiler="x", precision="fp16"),
        step("compile/other", compiler="z", precision="int8"),
        step("export/never"),
    )
    found = estimate.estimates(steps, dict.fromkeys(steps.steps, CHANGED), store)
    assert {name: (guess.duration_s, guess.basis) for name, guess in found.items() if guess} == wanted
    assert found["export/never"] is None


def test_what_is_reused_costs_nothing(store: Store) -> None:
    kept = step("export/a")
    record = remember(store, kept, 100)
    assert estimate.estimates(graph_of(kept), {kept.id: Staleness(record=record)}, store) == {}


@pytest.mark.parametrize(("jobs", "wall", "gib"), [(1, 60, 1.0), (2, 40, 2.0), (8, 40, 2.0)])
def test_steps_run_side_by_side_after_their_inputs(jobs: int, wall: float, gib: float) -> None:
    steps = graph_of(step("a/1"), step("b/1", "a/1"), step("b/2", "a/1"), step("c/1", "b/1"))
    found = {"a/1": took(10), "b/1": took(20), "b/2": took(20), "c/1": took(10)}
    totals = estimate.totals(steps, found, jobs)
    assert (totals.wall_s, totals.work_s, totals.peak_rss_bytes / 2**30) == (wall, 60, gib)


def test_a_step_that_measures_time_runs_alone() -> None:
    steps = graph_of(step("a/1"), step("m/1", exclusive=True), step("a/2"))
    totals = estimate.totals(steps, {"a/1": took(10), "m/1": took(10), "a/2": took(10)}, 4)
    assert (totals.wall_s, totals.peak_rss_bytes / 2**30) == (20, 2.0)


def test_a_damaged_record_is_no_reason_to_fail(store: Store) -> None:
    remember(store, step("export/a"), 10)
    (store.root / "steps" / "broken.json").write_text("{")
    (store.root / "steps" / "odd.json").write_text("[]")
    assert len(store.records()) == 1


@pytest.mark.parametrize(
    ("seconds", "said"), [(0.04, "0.0 s"), (9.6, "9.6 s"), (42.0, "42 s"), (200, "3 min 20 s"), (7500, "2 h 5 min")]
)
def test_times_are_said_as_people_say_them(seconds: float, said: str) -> None:
    assert plan_view.time_of(seconds) == said


def view(store: Store, **more: int) -> plan_view.View:
    matrix = load(MATRIX)
    laid_out = graph(matrix, matrix.rows, WORKER)
    return plan_view.View.of(plan(laid_out, store), store, **{"jobs": 2, "memory_bytes": 2**40, **more})


def screen(shown: plan_view.View) -> str:
    console = Console(soft_wrap=True, width=400)
    with console.capture() as captured:
        plan_view.show(console, shown)
    return captured.get()


def test_each_row_says_which_worker_it_needs(store: Store) -> None:
    said = {row["row"].split("__", 1)[1]: row for row in plan_view.as_json(view(store))["rows"]}
    assert said["h100-sxm-80gb__fp16__tp1"]["worker"] == "1 × h100-80gb-hbm3 GPU"
    assert said["cpu-avx512-bf16__bf16__tp1"]["worker"] == "a CPU like cpu-avx512-bf16"
    assert said["l40s__fp8__tp1"]["worker"] == "here"
    assert said["l40s__fp8__tp1"]["plan"] == "build"
    assert said["h100-sxm-80gb__fp16__tp1"]["plan"] == "skip"
    assert json.dumps(plan_view.as_json(view(store)))


def test_a_step_tells_its_own_reasons_and_else_after_what_it_comes(store: Store) -> None:
    first = tuple(
        Reason(cause=Cause.UPSTREAM, words=f"{step} is built first", step=step)
        for step in ("export/a", "quantize/a__fp8")
    )
    waits = Staleness(reasons=first)
    assert plan_view.reasons_of(waits) == ([], "after export, quantize")
    settings = (Reason(cause=Cause.SETTINGS, words=f"params.{n}: 1 -> 2") for n in range(5))
    changed = Staleness(reasons=(first[0], *settings))
    assert plan_view.reasons_of(changed) == (
        ["params.0: 1 -> 2", "params.1: 1 -> 2", "params.2: 1 -> 2", "and 2 more"],
        "",
    )
    text = screen(view(store))
    assert "compile/all-minilm-l6-v2__fp8__tensorrt-rtx-sm89__tp1  after quantize" in text
    assert "is built first" not in text


def test_without_a_past_there_is_no_estimate_and_that_is_said(store: Store) -> None:
    assert "No estimate of time, memory and disk" in screen(view(store))


def test_with_a_past_the_plan_says_what_it_takes_and_what_stands_in_the_way(store: Store) -> None:
    for each in view(store).plan.graph.steps.values():
        remember(store, each, 30)
    shown = view(store, memory_bytes=2**30)
    text = screen(shown)
    steps = len(shown.estimates)
    assert f"{plan_view.time_of(30.0 * steps)} one after the other" in text
    assert "2.0 GiB of memory at most" in text
    assert "This machine has 1.0 GiB: build with fewer --jobs" in text
    assert shown.totals.wall_s < 30 * steps


def test_the_command_shows_it(tmp_path: Path) -> None:
    done = run("plan", "--matrix", MATRIX, "--store", tmp_path / "store", "--select", "*l40s__fp8*", environ={})
    assert done.returncode == 0, done.stderr
    assert "1 rows: 1 to build." in done.stdout
    assert not (tmp_path / "store").exists()
