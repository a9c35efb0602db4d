"""Write fp8 into a large ONNX graph: ranges from a few runs, one weight in memory at a time.

Model Optimizer keeps every weight and every activation of the calibration, several times over: 15.6 GB and 357 s for
BERT-large. Here ONNX Runtime maps the weights and gives one number for each activation, and weights are rounded as
they are written. As in Model Optimizer, the products of an activation by a weight are quantized: one scale for each
activation (the largest magnitude, over 448) and one for each column of a weight. Products of two activations and sums
stay in fp16.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipelines.errors import QuantizeError
from pipelines.onnx_graph import external_data
from pipelines.onnx_graph.edit import add_constant, attribute
from pipelines.onnx_graph.session import in_parallel, session
from pipelines.quantize import half
from pipelines.quantize.products import Product, is_aligned
from serving.backends.base import Inputs
from serving.contract.profile import Precision

MAX_E4M3 = 448.0
MIN_SCALE = 2.0**-24  # fp16's least number: of a column of zeros


def with_pairs(model: Any, folder: Path, batches: Sequence[Inputs], scratch: Path) -> tuple[Any, external_data.Content]:
    """An externalized fp32 graph -> fp8 in products by weights, fp16 elsewhere, and the bytes of its external tensors.

    folder: what the graph's locations are relative to.
    """
    candidates = products(model)
    maxima = activation_maxima(model, folder, candidates, batches)
    # A weight is quantized for all of its products or for none.
    excluded = {product.weight for product in candidates if product.activation not in maxima}
    chosen = [product for product in candidates if product.weight not in excluded]
    largest = {product.node: maxima[product.activation] for product in chosen}
    scales = {product.weight: weight_scales(model, folder, product) for product in chosen}
    typed = half.with_casts(model, Precision.FP16, scratch)
    _insert_pairs(typed, chosen, largest, scales)
    axes = {f"{product.weight}_fp8": product.axis for product in chosen}

    def content(tensor: Any) -> bytes:
        if tensor.name not in axes:
            return half.rounded(tensor, folder)
        values = np.frombuffer(external_data.tensor_bytes(tensor, folder), np.float32).reshape(tuple(tensor.dims))
        return _fp8(values, scales[tensor.name.removesuffix("_fp8")], axes[tensor.name])

    return typed, content


def products(model: Any) -> list[Product]:
    """Every product by an external weight that only products take, of a size that fp8 hardware takes."""
    weights = {t.name: t for t in model.graph.initializer if external_data.is_external(t) and len(t.dims) == 2}
    candidates, other_consumers = [], set()
    for node in model.graph.node:
        is_product = node.op_type == "MatMul" or (node.op_type == "Gemm" and not attribute(node, "transA", 0))
        for index, name in enumerate(node.input):
            if name not in weights:
                continue
            if is_product and index == 1 and is_aligned(*weights[name].dims):
                axis = 0 if attribute(node, "transB", 0) else 1
                candidates.append(Product(node=node.name, activation=node.input[0], weight=name, axis=axis))
            else:
                other_consumers.add(name)
    return [product for product in candidates if product.weight not in other_consumers]


def activation_maxima(
    model: Any, folder: Path, candidates: Sequence[Product], batches: Sequence[Inputs]
) -> dict[str, float]:
    """The largest magnitude of each activation over the batches, of those that have a row for each token.

    An activation with one row for each text, after the pooling, is too little work for fp8 to speed up.
    """
    names = sorted({product.activation for product in candidates})
    path = folder / "calibrated.onnx"
    path.write_bytes(_with_maxima(model, names))
    instrumented = session(path)
    outputs = [f"{name}/{figure}" for name in names for figure in ("max", "rows")]

    def run(batch: Inputs) -> NDArray[np.float64]:
        return np.array([float(value) for value in instrumented.run(outputs, dict(batch))]).reshape(len(names), 2)

    figures = np.array(in_parallel(run, batches))  # (batches, activations, 2)
    path.unlink()
    if not np.isfinite(figures).all():
        raise QuantizeError("an activation of the fp32 graph is not finite on the calibration texts; use fp16")
    maxima, rows = figures[:, :, 0].max(axis=0), figures[:, :, 1].max(axis=0)
    return {name: float(maxima[i]) for i, name in enumerate(names) if rows[i] > 1}


def weight_scales(model: Any, folder: Path, product: Product) -> NDArray[np.float16]:
    """The scale of each column, as fp16 has it."""
    (tensor,) = (t for t in model.graph.initializer if t.name == product.weight)
    largest = np.abs(external_data.tensor_array(tensor, folder)).max(axis=1 - product.axis)
    return np.asarray(np.maximum(largest / MAX_E4M3, MIN_SCALE), dtype=np.float16)


def _fp8(values: NDArray[np.float32], scales: NDArray[np.float16], axis: int) -> bytes:
    import ml_dtypes

    divisors = scales.astype(np.float32)
    scaled = values / (divisors[:, None] if axis == 0 else divisors)
    np.clip(scaled, -MAX_E4M3, MAX_E4M3, out=scaled)  # a larger value would become NaN
    return scaled.astype(ml_dtypes.float8_e4m3fn).tobytes()


def _insert_pairs(
    typed: Any, chosen: Sequence[Product], largest: Mapping[str, float], scales: Mapping[str, NDArray[np.float16]]
) -> None:
    """Quantize and dequantize each activation before its products; dequantize each weight. In place."""
    from onnx import TensorProto

    graph, by_node = typed.graph, {product.node: product for product in chosen}
    for tensor in graph.initializer:
        if tensor.name in scales:
            tensor.name, tensor.data_type = f"{tensor.name}_fp8", TensorProto.FLOAT8E4M3FN
    nodes: list[Any] = []
    quantized: set[str] = set()
    for node in graph.node:
        if (product := by_node.get(node.name)) is not None:
            activation, weight = node.input[0], node.input[1]
            if activation not in quantized:
                nodes += _round_activation(graph, activation, largest[product.node])
            if weight not in quantized:
                nodes.append(_dequantize_weight(graph, weight, scales[weight], product.axis))
            quantized |= {activation, weight}
            node.input[0] = f"{activation}_rounded"
        nodes.append(node)
    for number, node in enumerate(nodes):
        node.name = node.name or f"fp8/{number}"
    graph.ClearField("node")
    graph.node.extend(nodes)


def _round_activation(graph: Any, name: str, largest: float) -> list[Any]:
    """The nodes that quantize NAME and dequantize it to NAME_rounded."""
    from onnx import helper

    pair = _scale_and_zero(graph, name, np.array(max(largest / MAX_E4M3, MIN_SCALE), np.float16))
    return [
        helper.make_node("QuantizeLinear", [name, *pair], [f"{name}_fp8"]),
        helper.make_node("DequantizeLinear", [f"{name}_fp8", *pair], [f"{name}_rounded"]),
    ]


def _dequantize_weight(graph: Any, name: str, scales: NDArray[np.float16], axis: int) -> Any:
    """The node that dequantizes the constant NAME_fp8 to NAME."""
    from onnx import helper

    pair = _scale_and_zero(graph, name, scales)
    return helper.make_node("DequantizeLinear", [f"{name}_fp8", *pair], [name], axis=axis)


def _scale_and_zero(graph: Any, name: str, scale: NDArray[np.float16]) -> list[str]:
    """Add the two constants of a quantization to the graph; their names."""
    from onnx import TensorProto, helper

    add_constant(graph, f"{name}_scale", scale)
    zero = helper.make_tensor(f"{name}_zero", TensorProto.FLOAT8E4M3FN, scale.shape, b"\0" * scale.size, raw=True)
    graph.initializer.append(zero)
    return [f"{name}_scale", f"{name}_zero"]


def _with_maxima(model: Any, names: Sequence[str]) -> bytes:
    """Two more outputs for each activation: its largest magnitude, and how many rows it has."""
    import onnx
    from onnx import TensorProto, helper

    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    graph = copy.graph
    constants = {"fp8/first": [0], "fp8/last": [-1]}
    graph.initializer.extend(helper.make_tensor(n, TensorProto.INT64, [1], v) for n, v in constants.items())
    for name in names:
        graph.node.extend(
            [
                helper.make_node("Abs", [name], [f"{name}/abs"]),
                helper.make_node("ReduceMax", [f"{name}/abs"], [f"{name}/max"], keepdims=0),
                helper.make_node("Shape", [name], [f"{name}/shape"]),
                helper.make_node("Slice", [f"{name}/shape", "fp8/first", "fp8/last"], [f"{name}/but-last"]),
                helper.make_node("ReduceProd", [f"{name}/but-last"], [f"{name}/rows"], keepdims=0),
            ]
        )
        graph.output.append(helper.make_tensor_value_info(f"{name}/max", TensorProto.FLOAT, []))
        graph.output.append(helper.make_tensor_value_info(f"{name}/rows", TensorProto.INT64, []))
    return bytes(copy.SerializeToString())
