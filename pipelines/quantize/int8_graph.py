"""Write int8's Q/DQ pairs into an ONNX graph, with outlier channels split off and activations smoothed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipelines.onnx_graph import external_data
from pipelines.onnx_graph.edit import add_constant, replace_nodes
from pipelines.quantize import half, outlier_split
from pipelines.quantize.activation_ranges import Array
from pipelines.quantize.fake_quant import Group, QuantParams, quantize_weight
from serving.contract.profile import Precision

Weights = Mapping[str, tuple[str, NDArray[np.int8], Array]]  # product -> its weight's name, int8 values, scales


def write_int8(
    model: Any, groups: Sequence[Group], params: Mapping[str, QuantParams], scratch: Path, *, zero_points: bool
) -> tuple[Any, external_data.Content]:
    """Quantize the activations that `params` names. Returns the graph and the bytes of its external tensors.

    zero_points: the rest stays fp32; else it becomes fp16.
    """
    import onnx
    from onnx import numpy_helper

    chains = {
        group.activation: group.chain
        for group in groups
        if group.chain is not None and group.activation in params and len(params[group.activation].outliers)
    }
    outlier_split.split_outliers(model, chains, {name: params[name].outliers for name in chains})
    split = {node for chain in chains.values() for node in (*chain.roots, chain.down)}
    by_product = {
        f"{product.node}/{outlier_split.INLIERS}" if product.node in split else product.node: params[group.activation]
        for group in groups
        if group.activation in params
        for product in group.products
    }
    _smooth(model, by_product)
    products = {node.input[1]: node.name for node in model.graph.node if node.name in by_product}
    weights = {
        products[tensor.name]: (tensor.name, *quantize_weight(numpy_helper.to_array(tensor)))
        for tensor in model.graph.initializer
        if tensor.name in products
    }
    path = scratch / "treated.onnx"
    onnx.save(model, path)
    typed, folder = external_data.read_externalized(path, scratch)
    if not zero_points:
        typed = half.with_casts(typed, Precision.FP16, scratch)
    _insert_pairs(typed, by_product, weights, zero_points)

    def content(tensor: Any) -> bytes:
        is_as_stored = zero_points or not external_data.is_external(tensor)
        return external_data.tensor_bytes(tensor, folder) if is_as_stored else half.rounded(tensor, folder)

    return typed, content


def _smooth(model: Any, by_product: Mapping[str, QuantParams]) -> None:
    """Divide activations by their smoothing and multiply the weights' rows by it. In place."""
    from onnx import helper, numpy_helper

    graph = model.graph
    tensors = {tensor.name: tensor for tensor in graph.initializer}
    nodes, smoothed = [], set()
    for node in graph.node:
        params = by_product.get(node.name)
        if params is not None and params.smooth is not None:
            smooth = np.delete(params.smooth, params.outliers)
            activation = node.input[0]
            name = f"{activation}/smooth"
            if activation not in smoothed:
                smoothed.add(activation)
                inverse = add_constant(graph, f"{name}/inverse", 1 / smooth)
                nodes.append(helper.make_node("Mul", [activation, inverse], [name], name=f"{name}/Mul"))
            weight = tensors[node.input[1]]
            scaled = (numpy_helper.to_array(weight) * smooth[:, None]).astype(np.float32)
            weight.CopyFrom(numpy_helper.from_array(scaled, weight.name))
            node.input[0] = name
        nodes.append(node)
    replace_nodes(graph, nodes)


def _insert_pairs(typed: Any, by_product: Mapping[str, QuantParams], weights: Weights, zero_points: bool) -> None:
    """Quantize and dequantize each activation before its products; dequantize each weight. In place."""
    from onnx import helper

    graph = typed.graph
    real = np.float32 if zero_points else np.float16
    integer = np.uint8 if zero_points else np.int8
    nodes, quantized = [], set()
    for node in list(graph.node):
        if node.name not in by_product:
            nodes.append(node)
            continue
        activation, params = node.input[0], by_product[node.name]
        if activation not in quantized:
            quantized.add(activation)
            scale = add_constant(graph, f"{activation}/int8-scale", real(params.scale))
            zero = add_constant(graph, f"{activation}/int8-zero", integer(params.zero_point))
            for op, source, target in (("Quantize", "", "/int8"), ("Dequantize", "/int8", "/rounded")):
                name = f"{activation}{target}"
                pair = [activation + source, scale, zero]
                nodes.append(helper.make_node(f"{op}Linear", pair, [name], name=f"{name}/{op}"))
        weight, values, scales = weights[node.name]
        triple = [
            add_constant(graph, f"{weight}/int8", values),
            add_constant(graph, f"{weight}/int8-scale", scales.astype(real)),
            add_constant(graph, f"{weight}/int8-zero", np.zeros(len(scales), np.int8)),
        ]
        name = f"{weight}/rounded"
        nodes.append(helper.make_node("DequantizeLinear", triple, [name], axis=1, name=f"{name}/Dequantize"))
        node.input[:] = [f"{activation}/rounded", name]
        nodes.append(node)
    replace_nodes(graph, nodes)
