"""Metrics of embedding engines: what the reference, another model, padding and a typed ONNX give."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import helper

from pipelines import stage
from pipelines.errors import GateError
from pipelines.gate import judge as gate
from pipelines.stage import StageRequest, StageResult
from pipelines.tasks.table import TASKS
from serving.backends import load
from serving.backends.base import LoadOptions
from serving.contract.profile import Precision
from serving.start.prove import rows
from serving.tasks.embed import Encoder, Golden, dump_golden
from tests.support.models import write_onnx
from tests.support.profiles import Tiny, make_tiny

Measure = Callable[..., dict[str, Any]]


@pytest.fixture(scope="module")
def tiny() -> Tiny:
    return make_tiny(0)


@pytest.fixture
def inputs(tiny: Tiny, tmp_path: Path) -> dict[str, Path]:
    """What the planner gives a measure stage, of a model small enough to run in no time."""
    rng = np.random.default_rng(7)
    passages = [" ".join(f"w{n}" for n in rng.integers(0, 96, 20)) for _ in range(30)]
    queries = [" ".join(passage.split()[:6]) for passage in passages]
    texts = {"retrieval": {"queries": queries, "passages": passages, "relevant": [[i] for i in range(30)]}}
    content = {
        "engine": tiny.onnx,
        "fp32.onnx": tiny.onnx,
        "tokenizer.json": tiny.tokenizer,
        "task.json": tiny.spec.dump(),
        "golden.json": dump_golden(tiny.golden),
        "texts.json": json.dumps(texts).encode(),
    }
    return {name: write(tmp_path / "in" / name, data) for name, data in content.items()}


@pytest.fixture
def measured(inputs: dict[str, Path], tmp_path: Path) -> Measure:
    """Run the stage with some params changed and some inputs replaced; returns metrics.json."""

    def run(changed: Mapping[str, Any] | None = None, **replaced: bytes) -> dict[str, Any]:
        result = run_stage(tmp_path, inputs, changed or {}, replaced)
        return dict(json.loads(result.outputs["metrics.json"].read_bytes()))

    return run


def run_stage(
    tmp_path: Path, inputs: Mapping[str, Path], changed: Mapping[str, Any], replaced: Mapping[str, bytes]
) -> StageResult:
    folder = tmp_path / f"run-{len(list(tmp_path.iterdir()))}"
    (folder / "out").mkdir(parents=True)
    given = {**inputs, **{name: write(folder / name, data) for name, data in replaced.items()}}
    params = {"task": "embed", "precision": "fp32", "evaluated": "engine", "backend": "onnxruntime", **changed}
    request = StageRequest(stage="measure", subject="a test", params=params, inputs=given, output_dir=folder / "out")
    return stage.run(request)


def write(path: Path, data: bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return path


def judge(metrics: dict[str, Any], precision: str) -> gate.Verdict:
    rules, thresholds = TASKS["embed"].rules, TASKS["embed"].thresholds[Precision(precision)]
    return gate.judge(metrics, rules, thresholds, row="a row", evaluated=metrics["evaluated"], digests={})


def test_the_reference_measured_against_itself_loses_nothing_and_passes_its_gate(measured: Measure):
    metrics = measured()
    assert metrics["cosine"]["min"] == pytest.approx(1, abs=1e-6)
    assert len(metrics["cosine"]["values"]) == metrics["cosine"]["num_texts"] == 6
    assert metrics["retrieval"]["drop"] == 0
    assert metrics["retrieval"]["num_queries"] == 30
    assert 0.2 < metrics["retrieval"]["ndcg_at_10"] <= 1
    assert metrics["realized_precision"] == {"fp32": 1.0}
    assert metrics["judged_with"] == f"onnxruntime {onnxruntime.__version__}"
    assert judge(metrics, "fp32").passed


def test_the_engine_of_another_model_fails_on_its_cosine(measured: Measure):
    metrics = measured(engine=make_tiny(1).onnx)
    verdict = judge(metrics, "fp32")
    assert not verdict.passed
    assert "is below 0.9999" in verdict.reasons[0]


def test_an_engine_that_lets_padding_into_its_vectors_fails_on_batch_invariance(measured: Measure, tiny: Tiny):
    leaky = onnx.load_model_from_string(tiny.onnx)
    product = next(node for node in leaky.graph.node if node.output[0] == "kept")
    leaky.graph.node.remove(product)
    leaky.graph.node.insert(4, helper.make_node("Identity", ["states"], ["kept"]))
    metrics = measured(engine=leaky.SerializeToString())
    assert metrics["batch_invariance"]["min_cosine"] < 0.99
    assert "batch_invariance" in {check.name for check in judge(metrics, "fp32").checks if check.passed is False}


def test_an_openvino_engine_is_timed_in_turn_with_its_baseline(measured: Measure, tiny: Tiny):
    baseline = {"backend": "onnxruntime", "precision": "fp32"}
    changed = {"backend": "openvino", "speed": True, "baseline": baseline}
    metrics = measured(changed, engine=tiny.blob, baseline=tiny.onnx)
    found = metrics["speed"]
    assert found["shape"] == [8, 32], "the largest that this engine takes"
    assert found["items_per_s"] > 0
    assert found["latency_s"] > 0
    ratio = found["items_per_s"] / found["baseline"]["items_per_s"]
    assert found["throughput_ratio"] == pytest.approx(ratio, rel=0.01)
    assert metrics["realized_precision"]
    assert metrics["judged_with"].startswith("openvino ")


def test_without_a_baseline_the_speed_is_recorded_and_not_compared(measured: Measure):
    found = measured({"speed": True})["speed"]
    assert found["baseline"] is None
    assert "throughput_ratio" not in found


def test_a_typed_onnx_gives_the_same_metrics_at_every_run(measured: Measure):
    assert measured({"evaluated": "typed-onnx"}) == measured({"evaluated": "typed-onnx"})


def test_an_fp8_graph_is_judged_on_this_cpu(measured: Measure, tiny: Tiny, tmp_path: Path):
    fp32, fp8 = (write_onnx(tmp_path / f"{kind}.onnx", fp8=kind == "fp8").read_bytes() for kind in ("fp32", "fp8"))
    spec = msgspec.structs.replace(tiny.spec, dimension=64)
    backend = load("onnxruntime", fp32, LoadOptions(precision=Precision.FP32, num_threads=1))
    items = Encoder(tiny.tokenizer, spec).encode(tiny.golden.texts, truncate="END")
    vectors = rows(backend.infer, spec.towers[0], items)
    metrics = measured(
        {"evaluated": "typed-onnx", "precision": "fp8"},
        **{
            "engine": fp8,
            "fp32.onnx": fp32,
            "task.json": spec.dump(),
            "golden.json": dump_golden(Golden(texts=tiny.golden.texts, vectors=vectors)),
        },
    )
    assert 0.98 < metrics["cosine"]["min"] < 0.99999, "rounded to fp8, and not run as fp32"
    assert metrics["realized_precision"] == {"fp8": 1.0}


def test_a_recorded_reference_gives_what_running_it_gives(measured: Measure, inputs: dict[str, Path], tmp_path: Path):
    recorded = run_stage(tmp_path, inputs, {"evaluated": "reference"}, {}).outputs["reference.json"].read_bytes()
    engine = make_tiny(1).onnx
    assert measured(engine=engine)["retrieval"] == measured(engine=engine, **{"reference.json": recorded})["retrieval"]


def test_a_reference_of_another_set_is_refused(measured: Measure):
    other = json.dumps({"set": "beir:mine", "max_tokens": 256, "ndcg_at_10": [1.0]}).encode()
    with pytest.raises(GateError, match=r"reference\.json is of beir:mine cut at 256 tokens"):
        measured(engine=make_tiny(1).onnx, **{"reference.json": other})


def test_a_persons_own_retrieval_set_is_used(measured: Measure, tmp_path: Path):
    folder = tmp_path / "mine"
    write(folder / "corpus.jsonl", b'{"_id": "a", "text": "w1 w2 w3"}\n{"_id": "b", "text": "w50 w60 w70"}\n')
    write(folder / "queries.jsonl", b'{"_id": "q", "text": "w50 w60"}\n')
    write(folder / "qrels/test.tsv", b"query-id\tcorpus-id\tscore\nq\tb\t1\n")
    found = measured({"retrieval": "beir:mine", "source_base": str(tmp_path)})["retrieval"]
    assert (found["set"], found["num_queries"], found["num_passages"]) == ("beir:mine", 1, 2)
    assert found["ndcg_at_10"] == 1


def test_bytes_that_are_no_engine_say_what_could_not_be_loaded(measured: Measure):
    with pytest.raises(GateError, match=r"engine \(fp32\) cannot be loaded to be judged: ONNX Runtime"):
        measured(engine=b"not an engine")


def test_a_task_without_metrics_says_so(measured: Measure):
    with pytest.raises(GateError, match="'generate' cannot be measured"):
        measured({"task": "generate"})
