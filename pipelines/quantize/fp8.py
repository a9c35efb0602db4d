"""Write fp8 into a large ONNX graph: ranges from a few runs, one weight in memory at a time.

Model Optimizer's route keeps every weight and every activation of the calibration, several times over: 15.6 GB and
357 s for BERT-large. Here ONNX Runtime maps the weights and gives out one number for each activation, and weights are
rounded as they are written. Quantized are the products of an activation by a weight, as Model Optimizer does: a scale
for each activation (the largest magnitude, over 448) and one for each column of a weight. Products of two activations
and sums stay in fp16.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipelines.errors import QuantizeError
from pipelines.onnx_graph import external_data
from pipelines.onnx_graph.session import in_parallel, session
from pipelines.quantize import half
from serving.backends.base import Inputs
from serving.contract.profile import Precision

MAX_E4M3 = 448.0
LEAST_SCALE = 2.0**-24  # fp16's least number: of a column of zeros
ALIGNMENT = 16  # fp8 tensor cores take rows and columns in sixteens


@dataclass(frozen=True, kw_only=True)
class Product:
    """A matrix product of an activation by a weight that lies beside the graph."""

    node: str
    activation: str
    weight: str
    axis: int  # of the weight's columns, each of which has a scale


def with_pairs(light: Any, folder: Path, batches: Sequence[Inputs], scratch: Path) -> tuple[Any, external_data.Content]:
    """A light fp32 graph -> fp8 where products have a weight and fp16 elsewhere, and what its weights' bytes are."""
    found = products(light)
    maxima = activation_maxima(light, folder, found, batches)
    otherwise_used = {product.weight for product in found if product.activation not in maxima}
    chosen = [product for product in found if product.weight not in otherwise_used]
    largest = {product.node: maxima[product.activation] for product in chosen}
    scales = {p.weight: weight_scales(light, folder, p) for p in chosen}
    typed = half.with_casts(light, Precision.FP16, scratch)
    _insert(typed, chosen, largest, scales)
    axes = {f"{product.weight}_fp8": product.axis for product in chosen}

    def content(tensor: Any) -> bytes:
        if tensor.name not in axes:
            return half.rounded(tensor, folder)
        values = np.frombuffer(external_data.stored(tensor, folder), np.float32).reshape(tuple(tensor.dims))
        return _fp8(values, scales[tensor.name.removesuffix("_fp8")], axes[tensor.name])

    return typed, content


def products(light: Any) -> list[Product]:
    """Every product by a weight that nothing else uses, of a size that fp8 hardware takes."""
    weights = {t.name: t for t in light.graph.initializer if external_data.is_external(t) and len(t.dims) == 2}
    found, other_users = [], set()
    for node in light.graph.node:
        is_product = node.op_type == "MatMul" or (node.op_type == "Gemm" and not _attribute(node, "transA"))
        for index, name in enumerate(node.input):
            if name not in weights:
                continue
            if is_product and index == 1 and not any(size % ALIGNMENT for size in weights[name].dims):
                axis = 0 if _attribute(node, "transB") else 1
                found.append(Product(node=node.name, activation=node.input[0], weight=name, axis=axis))
            else:
                other_users.add(name)
    return [product for product in found if product.weight not in other_users]


def activation_maxima(
    light: Any, folder: Path, found: Sequence[Product], batches: Sequence[Inputs]
) -> dict[str, float]:
    """The largest magnitude of each activation over the batches, of those that have a row for each token.

    What has one row for each text, behind a pooling, is small work that fp8 does not speed up.
    """
    names = sorted({product.activation for product in found})
    path = folder / "calibrated.onnx"
    path.write_bytes(_with_maxima(light, names))
    calibrated = session(path)
    outputs = [f"{name}/{figure}" for name in names for figure in ("max", "rows")]

    def run(batch: Inputs) -> NDArray[np.float64]:
        return np.array([float(value) for value in calibrated.run(outputs, dict(batch))]).reshape(len(names), 2)

    figures = np.array(in_parallel(run, batches))  # (batches, activations, 2)
    path.unlink()
    if not np.isfinite(figures).all():
        raise QuantizeError("an activation of the fp32 graph is not finite on the calibration texts; use fp16")
    maxima, rows = figures[:, :, 0].max(axis=0), figures[:, :, 1].max(axis=0)
    return {name: float(maxima[i]) for i, name in enumerate(names) if rows[i] > 1}


def weight_scales(light: Any, folder: Path, product: Product) -> NDArray[np.float16]:
    """The scale of each column, as fp16 has it."""
    (tensor,) = (t for t in light.graph.initializer if t.name == product.weight)
    largest = np.abs(external_data.array(tensor, folder)).max(axis=1 - product.axis)
    return np.asarray(np.maximum(largest / MAX_E4M3, LEAST_SCALE), dtype=np.float16)


def _fp8(values: NDArray[np.float32], scales: NDArray[np.float16], axis: int) -> bytes:
    import ml_dtypes

    wide = scales.astype(np.float32)
    scaled = values / (wide[:, None] if axis == 0 else wide)
    np.clip(scaled, -MAX_E4M3, MAX_E4M3, out=scaled)  # beyond it is NaN
    return scaled.astype(ml_dtypes.float8_e4m3fn).tobytes()


def _insert(
    typed: Any, chosen: Sequence[Product], largest: Mapping[str, float], scales: Mapping[str, NDArray[np.float16]]
) -> None:
    """Write the pairs into the fp16 graph. In place."""
    from onnx import TensorProto, helper, numpy_helper

    graph, by_node = typed.graph, {product.node: product for product in chosen}
    for tensor in graph.initializer:
        if tensor.name in scales:
            tensor.name, tensor.data_type = f"{tensor.name}_fp8", TensorProto.FLOAT8E4M3FN

    def constants(name: str, scale: NDArray[np.float16]) -> list[str]:
        zero = helper.make_tensor(f"{name}_zero", TensorProto.FLOAT8E4M3FN, scale.shape, b"\0" * scale.size, raw=True)
        graph.initializer.extend([numpy_helper.from_array(scale, f"{name}_scale"), zero])
        return [f"{name}_scale", f"{name}_zero"]

    nodes, done = [], set()
    for node in graph.node:
        product = by_node.get(node.name)
        if product is None:
            nodes.append(node)
            continue
        activation, weight = node.input[0], node.input[1]
        if activation not in done:
            done.add(activation)
            scale = np.array(max(largest[product.node] / MAX_E4M3, LEAST_SCALE), np.float16)
            pair = constants(activation, scale)
            nodes.append(helper.make_node("QuantizeLinear", [activation, *pair], [f"{activation}_fp8"]))
            nodes.append(helper.make_node("DequantizeLinear", [f"{activation}_fp8", *pair], [f"{activation}_rounded"]))
        if weight not in done:
            done.add(weight)
            pair = constants(weight, scales[weight])
            nodes.append(helper.make_node("DequantizeLinear", [f"{weight}_fp8", *pair], [weight], axis=product.axis))
        node.input[0] = f"{activation}_rounded"
        nodes.append(node)
    for number, node in enumerate(nodes):
        if not node.name:
            node.name = f"fp8/{number}"
    kept = list(nodes)
    graph.ClearField("node")
    graph.node.extend(kept)


def _with_maxima(light: Any, names: Sequence[str]) -> bytes:
    """The graph with two more outputs for each activation: its largest magnitude, and how many rows it has."""
    import onnx
    from onnx import TensorProto, helper

    model = onnx.ModelProto()
    model.CopyFrom(light)
    graph = model.graph
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
    return bytes(model.SerializeToString())


def _attribute(node: Any, name: str) -> int:
    return next((int(attribute.i) for attribute in node.attribute if attribute.name == name), 0)
