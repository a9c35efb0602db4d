"""The plan: who shares what, what is stale, and why."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from pipelines.gate.thresholds import Thresholds
from pipelines.matrix import load as matrices
from pipelines.matrix.values import Matrix, baseline_row
from pipelines.plan.cache_key import cache_key_inputs
from pipelines.plan.graph import Graph, Ref, Step
from pipelines.plan.layout import graph
from pipelines.plan.staleness import Cause, changes, state_of, states
from pipelines.store.store import Store
from serving.contract.profile import Precision
from tests.support.plans import WORKER, built, stale, words
from tests.support.published import MATRIX


@pytest.fixture(scope="module")
def demo() -> Matrix:
    return matrices.load(MATRIX)


@pytest.fixture(scope="module")
def demo_graph(demo: Matrix) -> Graph:
    return graph(demo, demo.rows, WORKER)


def test_rows_that_differ_only_in_sku_share_export_and_quantization(demo_graph: Graph) -> None:
    stages = [step.stage for step in demo_graph.steps.values()]
    assert stages.count("export") == 1
    quantized = [step.subject for step in demo_graph.steps.values() if step.stage == "quantize"]
    assert len(quantized) == len(set(quantized)) <= 4


def test_skus_of_one_compute_capability_share_one_compile(demo_graph: Graph) -> None:
    ada = {
        plan.engine
        for plan in demo_graph.rows
        if plan.row.sku.compute_capability == "8.9" and plan.row.precision is Precision.FP16
    }
    assert len(ada) == 1
    assert sum(p.row.sku.compute_capability == "8.9" and p.row.precision is Precision.FP16 for p in demo_graph.rows) > 2


def test_a_row_that_needs_a_gpu_that_is_not_here_is_planned_and_skipped_with_the_reason(demo_graph: Graph) -> None:
    hopper = [plan for plan in demo_graph.rows if plan.row.sku.compute_capability == "9.0"]
    assert hopper
    assert all(plan.engine is None and "needs a worker with h" in str(plan.refusal) for plan in hopper)


def test_each_step_comes_after_the_steps_it_takes_from(demo_graph: Graph) -> None:
    seen: set[str] = set()
    for step in demo_graph.steps.values():
        assert {ref.step for ref in step.inputs.values()} <= seen
        seen.add(step.id)


def test_an_empty_store_says_never_built(demo_graph: Graph, tmp_path: Path) -> None:
    found = states(demo_graph, Store(tmp_path))
    assert words(found["texts/stdlib"]) == ["never built"]
    assert all(state.record is None for state in found.values())


def test_a_complete_store_has_nothing_to_build(demo_graph: Graph, tmp_path: Path) -> None:
    store = Store(tmp_path)
    built(demo_graph, store)
    assert stale(demo_graph, store) == set()


def test_touching_one_threshold_judges_again_and_nothing_else(demo: Matrix, demo_graph: Graph, tmp_path: Path) -> None:
    store = Store(tmp_path)
    built(demo_graph, store)
    gates = {task: dict(by_precision) for task, by_precision in demo.gates.items()}
    gates["embed"][Precision.FP8] = replace(gates["embed"][Precision.FP8], max_ndcg_drop=0.001)
    touched = graph(replace(demo, gates=gates), demo.rows, WORKER)
    found = states(touched, store)
    again = {step_id: state for step_id, state in found.items() if state.record is None}
    assert again
    assert all(step_id.startswith("judge/") and "__fp8__" in step_id for step_id in again)
    assert {tuple(words(state)) for state in again.values()} == {("params.thresholds.max_ndcg_drop: 0.005 -> 0.001",)}


def test_changing_one_skus_entry_rebuilds_only_its_rows(demo: Matrix, demo_graph: Graph, tmp_path: Path) -> None:
    store = Store(tmp_path)
    built(demo_graph, store)
    skus = {**demo.skus, "t4": replace(demo.skus["t4"], compute_capability="8.6")}
    rows = tuple(replace(row, sku=skus[row.sku.name]) for row in demo.rows)
    touched = graph(replace(demo, skus=skus, rows=rows), rows, WORKER)
    assert stale(touched, store) <= {step_id for step_id in touched.steps if "__t4__" in step_id}


def test_a_new_compiler_version_makes_its_engines_stale_and_says_so(demo_graph: Graph, tmp_path: Path) -> None:
    store = Store(tmp_path)
    built(demo_graph, store)
    step = next(s for s in demo_graph.steps.values() if s.stage == "compile" and "openvino" in s.subject)
    newer = replace(step, toolchain={"openvino": "9999.1"})
    record = store.latest(step.stage, step.subject)
    assert record is not None
    source = next(iter(step.inputs.values()))
    state = state_of(newer, store, lambda ref: states(demo_graph, store)[source.step].record.outputs.get(ref.output))  # type: ignore[union-attr]
    assert state.record is None
    assert {reason.cause for reason in state.reasons} == {Cause.TOOLCHAIN}
    assert any(line.startswith("toolchain.openvino:") and line.endswith("-> 9999.1") for line in words(state))


def test_a_step_whose_input_is_stale_waits_for_it(demo_graph: Graph, tmp_path: Path) -> None:
    store = Store(tmp_path)
    built(demo_graph, store, without=("export/all-minilm-l6-v2",))
    found = states(demo_graph, store)
    quantize = next(s for s in demo_graph.steps if s.startswith("quantize/"))
    assert words(found[quantize]) == ["export/all-minilm-l6-v2 is built first"]
    assert [reason.step for reason in found[quantize].reasons] == ["export/all-minilm-l6-v2"]
    assert found[quantize].own == ()


def test_no_path_of_this_machine_enters_a_key(demo_graph: Graph) -> None:
    for step in demo_graph.steps.values():
        assert str(MATRIX.parent) not in str(cache_key_inputs(step, {}))


def test_a_closure_holds_a_step_and_what_it_takes_from(demo_graph: Graph) -> None:
    verdict = next(plan.verdict for plan in demo_graph.rows if plan.verdict is not None)
    small = demo_graph.closure([verdict.step])
    assert {step.stage for step in small.steps.values()} >= {"texts", "export", "compile", "measure", "judge"}
    assert len(small.steps) < len(demo_graph.steps)


def test_a_lower_precision_is_compared_with_a_baseline_on_its_own_sku(demo: Matrix) -> None:
    bf16 = next(r for r in demo.rows if r.sku.name == "cpu-avx512-bf16" and r.precision is Precision.BF16)
    baseline = baseline_row(bf16, demo.rows)
    assert baseline is not None
    assert (baseline.sku.name, baseline.precision) == ("cpu-avx512-bf16", Precision.FP32)
    generic = baseline_row(baseline, demo.rows)
    assert generic is not None
    assert generic.sku.name == "cpu-x86-64"
    assert baseline_row(generic, demo.rows) is None


def test_a_target_names_what_the_compiler_is_told(demo: Matrix) -> None:
    targets = {row.sku.name: row.sku.target for row in demo.rows}
    assert targets["l40s"] == "tensorrt-rtx-sm89"
    assert targets["cpu-avx512-bf16"] == "openvino-avx512-core-bf16"
    assert targets["cpu-x86-64"] == "onnx"


def test_changes_are_told_in_words() -> None:
    assert [reason.words for reason in changes({"a": {"b": 1}}, {"a": {"b": 2}})] == ["a.b: 1 -> 2"]
    (other_input,) = changes({"inputs": {"x": "sha256:1"}}, {"inputs": {"x": "sha256:2"}})
    assert other_input.words == "inputs.x changed"
    assert changes({"a": [1]}, {"a": (1,)}) == []


@pytest.mark.parametrize(
    ("part", "name", "cause"),
    [
        ("params", "source_digest", Cause.MODEL),
        ("params", "precision", Cause.SETTINGS),
        ("inputs", "model.onnx", Cause.INPUTS),
        ("toolchain", "openvino", Cause.TOOLCHAIN),
    ],
)
def test_what_changed_decides_the_cause(part: str, name: str, cause: Cause) -> None:
    (reason,) = changes({part: {name: "1"}}, {part: {name: "2"}})
    assert reason.cause is cause


def test_a_step_whose_outputs_are_gone_says_so(demo_graph: Graph, tmp_path: Path) -> None:
    store = Store(tmp_path)
    built(demo_graph, store)
    record = states(demo_graph, store)["texts/stdlib"].record
    assert record is not None
    store.path(record.outputs["texts.json"].digest).unlink()
    (reason,) = states(demo_graph, store)["texts/stdlib"].reasons
    assert (reason.cause, reason.words) == (Cause.LOST, "its outputs are no longer in the store")


def test_a_step_that_takes_nothing_is_known_by_its_parameters(tmp_path: Path) -> None:
    step = Step(stage="texts", subject="s", params={"a": 1}, inputs={}, toolchain={}, code={})
    assert state_of(step, Store(tmp_path), lambda _: None).reasons[0].cause is Cause.NEVER_BUILT
    assert Ref(step=step.id, output="x").step == "texts/s"


def test_thresholds_survive_the_way_through_a_steps_parameters(demo_graph: Graph) -> None:
    judge = next(step for step in demo_graph.steps.values() if step.stage == "judge")
    assert Thresholds(**judge.params["thresholds"]).proof_min_cosine > 0.9


def test_a_gpu_row_is_measured_on_its_engine_where_that_gpu_is(demo: Matrix) -> None:
    worker = replace(WORKER, gpu_pci_ids=("26b9",))
    plans = {plan.row.name: plan for plan in graph(demo, demo.rows, worker).rows}
    steps = graph(demo, demo.rows, worker).steps
    ours, theirs = (plans[f"all-minilm-l6-v2__{sku}__fp8__tp1"].metrics for sku in ("l40s", "l4"))
    assert ours is not None
    assert theirs is not None
    here, elsewhere = steps[ours.step], steps[theirs.step]
    assert (here.params["evaluated"], here.params["backend"], here.params["speed"]) == ("engine", "tensorrt-rtx", True)
    assert here.inputs["engine"] == plans["all-minilm-l6-v2__l40s__fp8__tp1"].engine
    assert "fp16" in here.inputs["baseline"].step
    assert here.exclusive
    assert elsewhere.params["evaluated"] == "typed-onnx"
