"""int8: outlier channels, the search for what is excluded, and the types that hardware takes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from pipelines.errors import QuantizeError
from pipelines.onnx_graph import external_data
from pipelines.quantize import int8, outlier_split
from pipelines.quantize.activation_ranges import Range
from pipelines.quantize.fake_quant import Treatment, quant_params

WIDTH, INNER, LAYERS = 64, 320, 2
ROWS = ("batch", "tokens", WIDTH)


def block(kind: str, seed: int = 0, outliers_of: int = 6) -> Any:
    """Feed-forward layers with a residual; a few channels of each activation are ten and more times the others."""
    rng = np.random.default_rng(seed)
    nodes: list[Any] = []
    weights: list[Any] = []

    def tensor(name: str, value: Any) -> str:
        weights.append(numpy_helper.from_array(np.asarray(value, dtype=np.float32), name))
        return name

    def node(op: str, inputs: Sequence[str], name: str, **attributes: Any) -> str:
        nodes.append(helper.make_node(op, list(inputs), [f"{name}_out"], name=name, **attributes))
        return f"{name}_out"

    now = "x"
    for layer in range(LAYERS):
        up = rng.normal(size=(WIDTH, INNER)) / np.sqrt(WIDTH)
        up[:, :outliers_of] *= 12
        down = tensor(f"down{layer}", rng.normal(size=(INNER, WIDTH)) / np.sqrt(INNER))
        product = node("MatMul", [now, tensor(f"up{layer}", up)], f"up{layer}_MatMul")
        biased = product
        if kind != "swiglu":
            biased = node("Add", [product, tensor(f"bias{layer}", rng.normal(size=INNER))], f"bias{layer}_Add")
        if kind == "gelu":
            inner = node("Gelu", [biased], f"gelu{layer}")
        elif kind == "erf":
            over = node("Div", [biased, tensor(f"root{layer}", 2**0.5)], f"div{layer}")
            erf = node("Erf", [over], f"erf{layer}")
            one = node("Add", [erf, tensor(f"one{layer}", 1)], f"one{layer}_Add")
            inner = node(
                "Mul", [node("Mul", [biased, one], f"mul{layer}"), tensor(f"half{layer}", 0.5)], f"half{layer}_Mul"
            )
        else:  # SwiGLU
            gate = node(
                "MatMul", [now, tensor(f"gate{layer}", rng.normal(size=(WIDTH, INNER)) / 8)], f"gate{layer}_MatMul"
            )
            silu = node("Mul", [gate, node("Sigmoid", [gate], f"sigmoid{layer}")], f"silu{layer}")
            inner = node("Mul", [silu, product], f"mul{layer}")
        out = node("MatMul", [inner, down], f"down{layer}_MatMul")
        summed = node("Add", [now, out], f"residual{layer}")
        scale = np.ones(WIDTH)
        scale[:3] = 15  # a LayerNorm whose weight makes outliers
        now = node("LayerNormalization", [summed, tensor(f"norm{layer}", scale)], f"norm{layer}_LN", axis=-1)
    head = tensor("head", rng.normal(size=(WIDTH, 16)))
    nodes.append(helper.make_node("MatMul", [now, head], ["tokens"], name="head_MatMul"))
    weights.append(numpy_helper.from_array(np.array([1], np.int64), "axis"))
    nodes.append(helper.make_node("ReduceMean", ["tokens", "axis"], ["y"], name="pool", keepdims=0))
    graph = helper.make_graph(
        nodes,
        "block",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ROWS)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ("batch", 16))],
        weights,
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)


def texts(count: int = 16, seed: int = 1) -> list[dict[str, NDArray[np.float32]]]:
    rng = np.random.default_rng(seed)
    return [{"x": rng.normal(size=(1, 24, WIDTH)).astype(np.float32)} for _ in range(count)]


def answers(model: bytes, batches: Sequence[Any]) -> NDArray[np.float32]:
    config = onnxruntime.SessionOptions()
    config.add_session_config_entry("session.disable_quant_qdq", "1")  # pairs as they are written
    config.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(model, config, providers=["CPUExecutionProvider"])
    return np.concatenate([session.run(None, batch)[0] for batch in batches])


def made(model: Any, folder: Path, *, zero_points: bool = True, max_nsr: float = 0.01) -> tuple[bytes, Any]:
    source = folder / "source.onnx"
    onnx.save(model, source)
    typed, content, facts = int8.with_pairs(source, texts(), folder, zero_points=zero_points, max_nsr=max_nsr)
    [path] = external_data.write(typed, folder / "int8.onnx", folder, external=False, content=content)
    onnx.checker.check_model(str(path))
    return path.read_bytes(), facts


def nsr(found: NDArray[np.float32], wanted: NDArray[np.float32]) -> float:
    return float(((found - wanted) ** 2).sum() / ((wanted - wanted.mean(axis=0)) ** 2).sum())


@pytest.mark.parametrize("kind", ["gelu", "erf", "swiglu"])
def test_splitting_outliers_leaves_what_a_graph_computes_as_it_is(kind: str) -> None:
    model = block(kind)
    wanted = answers(model.SerializeToString(), texts(4))
    groups = [group for group in int8.groups_of(model) if group.chain]
    assert len(groups) == LAYERS
    channels = np.array([0, 3, 5, 319])
    outlier_split.split_outliers(
        model, {g.activation: g.chain for g in groups if g.chain}, {g.activation: channels for g in groups}
    )
    onnx.checker.check_model(model)
    shapes = {t.name: tuple(t.dims) for t in model.graph.initializer}
    assert (INNER - 4, WIDTH) in shapes.values()
    assert (4, WIDTH) in shapes.values()
    assert (INNER, WIDTH) not in shapes.values(), "the whole weight is still there"
    np.testing.assert_allclose(answers(model.SerializeToString(), texts(4)), wanted, rtol=2e-4, atol=2e-4)


def test_channels_that_another_node_needs_whole_are_not_split() -> None:
    model = block("gelu")
    model.graph.output.append(helper.make_tensor_value_info("gelu0_out", TensorProto.FLOAT, None))
    chains = {group.activation: group.chain for group in int8.groups_of(model)}
    assert chains["gelu0_out"] is None
    assert chains["gelu1_out"] is not None


@pytest.mark.parametrize("zero_points", [True, False])
@pytest.mark.parametrize("kind", ["gelu", "swiglu"])
def test_the_search_recovers_what_outliers_cost(kind: str, zero_points: bool, tmp_path: Path) -> None:
    model = block(kind)
    typed, facts = made(model, tmp_path, zero_points=zero_points)
    untreated = sum(tried["nsr_untreated"] for tried in facts["int8_treatments"])
    assert facts["int8_nsr"] < untreated / 3
    assert any(tried["num_outliers"] for tried in facts["int8_treatments"]), "no channel was split off"
    # What fake quantization measured is what the written graph does, on texts that nothing was chosen by.
    found = nsr(answers(typed, texts(32, seed=7)), answers(block(kind).SerializeToString(), texts(32, seed=7)))
    assert found < 2 * facts["int8_nsr"] + 1e-5


@pytest.mark.parametrize(("zero_points", "number"), [(True, TensorProto.UINT8), (False, TensorProto.INT8)])
def test_activations_are_of_the_type_that_their_hardware_takes(zero_points: bool, number: int, tmp_path: Path) -> None:
    typed, _ = made(block("gelu"), tmp_path, zero_points=zero_points)
    model = onnx.load_model_from_string(typed)
    tensors = {tensor.name: tensor for tensor in model.graph.initializer}
    zeros = [tensors[node.input[2]] for node in model.graph.node if node.op_type == "QuantizeLinear"]
    assert {zero.data_type for zero in zeros} == {number}
    points = {int(numpy_helper.to_array(zero)) for zero in zeros}
    assert (points == {0}) is not zero_points  # TensorRT takes none but zero
    weights = [t for t in tensors.values() if t.data_type == TensorProto.INT8 and len(t.dims) == 2]
    assert len(weights) == 2 * LAYERS + 1
    others = {t.data_type for t in tensors.values() if len(t.dims) == 2} - {TensorProto.INT8}
    assert others <= {TensorProto.FLOAT if zero_points else TensorProto.FLOAT16}


def test_what_disturbs_the_answers_most_for_its_work_is_excluded(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    _, everything = made(block("gelu"), tmp_path / "a", max_nsr=0.5)
    assert everything["int8_excluded"] == []
    _, some = made(block("gelu"), tmp_path / "b", max_nsr=everything["int8_nsr"] / 2)
    assert 0 < len(some["int8_excluded"]) < 2 * LAYERS + 1
    assert some["int8_nsr"] <= everything["int8_nsr"] / 2
    assert some["int8_nsr_of_all"] == everything["int8_nsr_of_all"]


def test_an_nsr_that_no_product_keeps_below_is_an_error_with_the_remedy(tmp_path: Path) -> None:
    with pytest.raises(QuantizeError, match=r"disturbs the answers by more than max_nsr 1e-12 allows; leave int8 out"):
        made(block("gelu"), tmp_path, max_nsr=1e-12)


def test_a_search_needs_texts_to_hold_out(tmp_path: Path) -> None:
    onnx.save(block("gelu"), tmp_path / "source.onnx")
    with pytest.raises(QuantizeError, match=r"calibration\.num_texts is 3; the search needs 4 or more"):
        int8.with_pairs(tmp_path / "source.onnx", texts(3), tmp_path, zero_points=True, max_nsr=0.01)


@pytest.mark.parametrize("zero_points", [True, False])
def test_a_range_on_one_side_of_zero_still_holds_zero(zero_points: bool) -> None:
    seen = Range(least=np.full(4, 2, np.float32), largest=np.array([4, 4, 8, 4], np.float32))
    found = quant_params(Treatment(smoothing=None), seen, [np.ones((4, 16), np.float32)], zero_points)
    low, high = (0 - found.zero_point, 255 - found.zero_point) if zero_points else (-128, 127)
    assert low * found.scale <= 0
    assert high * found.scale == pytest.approx(8, rel=1e-2)


def test_outliers_are_the_largest_channels_and_do_not_raise_the_scale() -> None:
    seen = Range(least=np.array([0, -90, 0, 0, 0, 0], np.float32), largest=np.array([1, 1, 1, 70, 1, 1.27], np.float32))
    treatment = Treatment(smoothing=None, num_outliers=2)
    found = quant_params(treatment, seen, [np.ones((6, 16), np.float32)], zero_points=False)
    assert found.outliers.tolist() == [1, 3]
    assert float(found.scale) == pytest.approx(0.01, rel=1e-3)
