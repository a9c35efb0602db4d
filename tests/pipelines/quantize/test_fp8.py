"""fp8: which products are quantized, their scales and weights, and answers close to fp32."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from pipelines import stage
from pipelines.errors import QuantizeError
from pipelines.onnx_graph import external_data
from pipelines.onnx_graph.edit import scrub
from pipelines.onnx_graph.emulate import dequantize_weights
from pipelines.onnx_graph.precision import realized_precision
from pipelines.quantize import fp8, model_optimizer
from pipelines.stage import StageRequest
from tests.support.models import RunStage

WIDTH = 64


@pytest.fixture(autouse=True)
def small_is_large(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(external_data, "MIN_EXTERNAL_BYTES", 4095)  # of fp32; of fp8 they stay in the graph
    monkeypatch.setattr(external_data, "LARGE_BYTES", 0)


def hand_made() -> Any:
    """Tokens (B, T) -> table -> two products with a shared input -> mean -> a product that has one row a text."""
    rng = np.random.default_rng(0)
    weights = {
        "table": rng.normal(size=(96, WIDTH)),
        "left": rng.normal(size=(WIDTH, 32)) * np.linspace(0.1, 3, 32),
        "right": rng.normal(size=(32, WIDTH)),
        "head": rng.normal(size=(32, WIDTH)),
        "uneven": rng.normal(size=(WIDTH, 33)),
        "twice": rng.normal(size=(32, 32)),
    }
    weights["left"][:, 5] = 0  # a column of zeros
    nodes = [
        helper.make_node("Gather", ["table", "input_ids"], ["hidden"], name="gather"),
        helper.make_node("MatMul", ["hidden", "left"], ["a"], name="left-product"),
        helper.make_node("MatMul", ["hidden", "uneven"], ["u"], name="uneven-product"),
        helper.make_node("MatMul", ["a", "right"], ["b"], name="right-product"),
        helper.make_node("MatMul", ["hidden", "turned"], ["t"], name="tied-product"),
        helper.make_node("Transpose", ["table"], ["turned"], name="turn", perm=[1, 0]),
        helper.make_node("ReduceMean", ["a", "axis"], ["pooled"], name="mean", keepdims=0),
        helper.make_node("MatMul", ["pooled", "twice"], ["mixed"], name="pooled-product"),
        helper.make_node("Gemm", ["mixed", "head"], ["c"], name="head-product"),
        helper.make_node("MatMul", ["a", "twice"], ["g"], name="twice-product"),
        helper.make_node("ReduceMean", ["g", "axis"], ["h"], name="mean-g", keepdims=0),
        helper.make_node("ReduceMean", ["b", "axis"], ["d"], name="mean-b", keepdims=0),
        helper.make_node("ReduceMean", ["u", "axis"], ["e"], name="mean-u", keepdims=0),
        helper.make_node("ReduceMean", ["t", "axis"], ["f"], name="mean-t", keepdims=0),
        helper.make_node("Concat", ["c", "d", "e", "f", "h"], ["embeddings"], name="all", axis=-1),
    ]
    nodes.insert(4, nodes.pop(5))
    initializers = [numpy_helper.from_array(value.astype(np.float32), name) for name, value in weights.items()]
    initializers.append(numpy_helper.from_array(np.array([1], np.int64), "axis"))
    graph = helper.make_graph(
        nodes,
        "by hand",
        [helper.make_tensor_value_info("input_ids", TensorProto.INT64, ["B", "T"])],
        [helper.make_tensor_value_info("embeddings", TensorProto.FLOAT, ["B", 2 * WIDTH + 33 + 96 + 32])],
        initializers,
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


def batches(num: int = 4) -> list[dict[str, Any]]:
    rng = np.random.default_rng(1)
    return [{"input_ids": rng.integers(0, 96, size=(1, 3 + n))} for n in range(num)]


@pytest.fixture
def made(tmp_path: Path) -> tuple[Path, Path]:
    """The fp32 file, and the fp8 one made of it."""
    (source,) = external_data.write(hand_made(), tmp_path / "fp32.onnx", tmp_path, external=False)
    return source, quantized(source, tmp_path / "scratch", tmp_path / "fp8.onnx")


def quantized(source: Path, scratch: Path, target: Path) -> Path:
    scratch.mkdir()
    externalized, folder = external_data.read_externalized(source, scratch)
    with model_optimizer.captured():
        model, content = fp8.with_pairs(externalized, folder, batches(), scratch)
    scrub(model)
    (path,) = external_data.write(model, target, scratch, external=False, content=content)
    return path


def run(model: bytes | Path, inputs: Mapping[str, Any]) -> Any:
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
    return onnxruntime.InferenceSession(model, options).run(None, dict(inputs))[0]


def test_products_of_tokens_by_weights_are_quantized_and_no_others(made: tuple[Path, Path]) -> None:
    graph = onnx.load(made[1]).graph
    given = {node.name: list(node.input[:2]) for node in graph.node if node.op_type in ("MatMul", "Gemm")}
    dequantized = {name for node in graph.node if node.op_type == "DequantizeLinear" for name in node.output}
    assert {name for name, inputs in given.items() if set(inputs) <= dequantized} == {"left-product", "right-product"}
    for name in ("head-product", "uneven-product", "tied-product", "pooled-product"):
        assert not set(given[name]) & dequantized, name
    assert given["twice-product"][1] not in dequantized, "the pooled text is multiplied by it too"
    onnx.checker.check_model(onnx.load(made[1]), full_check=True)
    assert realized_precision(made[1].read_bytes()) == {"fp8": 2 / 7, "fp16": 5 / 7}


def test_an_activation_that_two_products_take_is_rounded_once(made: tuple[Path, Path], tmp_path: Path) -> None:
    ops = [node.op_type for node in onnx.load(made[1]).graph.node]
    assert ops.count("QuantizeLinear") == 2, "hidden and a; weights are fp8 already"
    assert ops.count("DequantizeLinear") == 4


def test_scales_are_the_largest_magnitude_over_448(made: tuple[Path, Path]) -> None:
    tensors = {tensor.name: numpy_helper.to_array(tensor) for tensor in onnx.load(made[1]).graph.initializer}
    fp32 = {tensor.name: numpy_helper.to_array(tensor) for tensor in hand_made().graph.initializer}
    hidden = [fp32["table"][batch["input_ids"]] for batch in batches()]
    seen = {
        "hidden": max(np.abs(values).max() for values in hidden),
        "a": max(np.abs(values @ fp32["left"]).max() for values in hidden),
    }
    for name, largest in seen.items():
        (scale,) = [value for key, value in tensors.items() if key.startswith(name) and key.endswith("_scale")]
        assert scale.dtype == np.float16
        assert scale == pytest.approx(largest / 448, rel=1e-3)
    columns = np.abs(fp32["left"]).max(axis=0)
    expected = np.where(columns > 0, columns / 448, fp8.MIN_SCALE)
    assert tensors["left_scale"] == pytest.approx(expected, rel=1e-3)


def test_weights_are_the_nearest_fp8_numbers_and_none_is_nan(made: tuple[Path, Path]) -> None:
    tensors = {tensor.name: tensor for tensor in onnx.load(made[1]).graph.initializer}
    assert tensors["left_fp8"].data_type == TensorProto.FLOAT8E4M3FN
    values = np.frombuffer(tensors["left_fp8"].raw_data, ml_dtypes.float8_e4m3fn).astype(np.float32).reshape(WIDTH, 32)
    scales = numpy_helper.to_array(tensors["left_scale"]).astype(np.float32)
    weight = next(numpy_helper.to_array(t) for t in hand_made().graph.initializer if t.name == "left")
    assert np.isfinite(values).all()
    assert np.abs(values).max() == 448
    # Three bits of mantissa: at most a sixteenth of a number is lost, and of the smallest ones half a step.
    assert (np.abs(values * scales - weight) <= np.maximum(np.abs(weight) / 16, scales * 2.0**-10) * 1.01).all()


def test_the_answers_are_close_to_fp32(made: tuple[Path, Path]) -> None:
    expected, found = (run(path, batches()[3]) for path in made)
    assert (expected * found).sum() / np.linalg.norm(expected) / np.linalg.norm(found) > 0.998
    assert not np.array_equal(expected, found)


def test_what_is_judged_gives_the_numbers_of_the_graph_as_it_is(made: tuple[Path, Path], tmp_path: Path) -> None:
    judged = dequantize_weights(made[1], tmp_path)
    ops = [node.op_type for node in onnx.load(judged).graph.node]
    assert ops.count("DequantizeLinear") == 2, "of the activations"
    assert external_data.has_external_data(judged)
    assert dequantize_weights(made[0], tmp_path) == made[0], "an fp32 graph has nothing to dequantize"
    for batch in batches():
        assert np.array_equal(run(judged, batch), run(made[1], batch))


def test_the_bytes_do_not_depend_on_the_folder_nor_on_the_number_of_cpus(
    made: tuple[Path, Path], tmp_path: Path, one_cpu: None
) -> None:
    again = quantized(made[0], tmp_path / "another scratch folder", tmp_path / "again.onnx")
    assert again.read_bytes() == made[1].read_bytes()


@pytest.fixture
def one_cpu(made: tuple[Path, Path]) -> Iterator[None]:
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(before)})
    yield
    os.sched_setaffinity(0, before)


def test_a_graph_whose_activations_overflow_is_refused(tmp_path: Path) -> None:
    model = hand_made()
    table = next(tensor for tensor in model.graph.initializer if tensor.name == "table")
    table.CopyFrom(numpy_helper.from_array(np.full((96, WIDTH), np.inf, np.float32), "table"))
    (source,) = external_data.write(model, tmp_path / "fp32.onnx", tmp_path, external=False)
    with pytest.raises(QuantizeError, match="not finite on the calibration texts"):
        quantized(source, tmp_path / "scratch", tmp_path / "fp8.onnx")


@pytest.mark.slow
def test_a_large_model_loses_no_more_than_by_model_optimizer(
    exported: Mapping[str, Path], texts_json: Path, run_stage: RunStage, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = ("model.onnx", "tokenizer.json", "task.json")
    inputs = {**{name: exported[name] for name in names}, "texts.json": texts_json}
    params = {"task": "embed", "precision": "fp8", "num_texts": 8, "max_tokens": 32}
    ours = run_stage("quantize", params, inputs)
    monkeypatch.setattr(external_data, "LARGE_BYTES", 2**29)
    theirs = run_stage("quantize", params, inputs)
    assert ours.facts["num_quantized_products"] == theirs.facts["num_quantized_products"] == 12
    assert ours.facts["size_bytes"] < theirs.facts["size_bytes"]
    found = [cosine(run_stage, {**exported, "texts.json": texts_json}, made.outputs) for made in (ours, theirs)]
    assert found[0] > found[1] - 0.002
    assert found[0] > 0.98


def cosine(run_stage: Callable[..., Any], files: Mapping[str, Path], typed: Mapping[str, Path]) -> float:
    params = {"task": "embed", "precision": "fp8", "evaluated": "typed-onnx", "backend": "onnxruntime"}
    names = ("tokenizer.json", "task.json", "golden.json", "texts.json")
    inputs = {**{name: files[name] for name in names}, "engine": typed["model.onnx"], "fp32.onnx": files["model.onnx"]}
    metrics = json.loads(run_stage("measure", params, inputs).outputs["metrics.json"].read_bytes())
    return float(metrics["cosine"]["mean"])


def test_int8_of_a_model_with_external_data_is_refused_with_what_to_choose(
    exported: Mapping[str, Path], texts_json: Path, tmp_path: Path
) -> None:
    (tmp_path / "out").mkdir()
    graph, data = external_data.write(
        onnx.load(exported["model.onnx"]), tmp_path / "model.onnx", tmp_path, external=True
    )
    inputs = {name: exported[name] for name in ("tokenizer.json", "task.json")}
    inputs |= {"model.onnx": graph, "model.onnx.data": data, "texts.json": texts_json}
    params = {"task": "embed", "precision": "int8", "num_texts": 2, "max_tokens": 16}
    request = StageRequest(
        stage="quantize", subject="a test", params=params, inputs=inputs, output_dir=tmp_path / "out"
    )
    with pytest.raises(QuantizeError, match=r"int8: this model has more than 2 GiB .* build it in fp8, fp16 or bf16"):
        stage.run(request)
