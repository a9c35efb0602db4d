"""The precision that an ONNX graph really holds: each tensor's element type, and each matrix product's format."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

from pipelines.onnx_graph import external_data

# Operators that move numbers without changing them: their outputs are as rounded as their inputs.
MOVERS = frozenset(
    {
        *("Concat", "Constant", "ConstantOfShape", "Expand", "Flatten", "Gather", "Identity", "Reshape", "Slice"),
        *("Split", "Squeeze", "Transpose", "Unsqueeze"),
    }
)
_PRODUCTS = frozenset({"Attention", "Conv", "Gemm", "MatMul"})
_FORMATS = {1: "fp32", 2: "int8", 3: "int8", 10: "fp16", 16: "bf16", 17: "fp8"}  # onnx.TensorProto.DataType
_HIGHEST_FIRST = ("fp32", "fp16", "bf16", "fp8", "int8")


def realized_precision(model: bytes) -> dict[str, float]:
    """The share of matrix products in each number format: {"fp16": 0.25, "fp8": 0.75}. Each product counts as one.

    A product has the format of its two factors, or the higher precision of the two. A factor that a DequantizeLinear
    gives has the format it was quantized to.
    """
    proto = external_data.parse(model)
    for tensor in proto.graph.initializer:  # shape inference needs no weights, and would copy them
        if len(tensor.raw_data) >= external_data.MIN_EXTERNAL_BYTES:
            external_data.externalize(tensor, "elsewhere", 0, 0)
    graph, types = proto.graph, element_types(proto)
    producers = {output: node for node in graph.node for output in node.output}
    counts: Counter[str] = Counter()
    for node in graph.node:
        if node.op_type in _PRODUCTS:
            formats = {_format(name, producers, types) for name in node.input[:2]}
            counts[next((name for name in _HIGHEST_FIRST if name in formats), "unknown")] += 1
    return {name: count / counts.total() for name, count in sorted(counts.items())}


def element_types(proto: Any) -> dict[str, int]:
    """Each tensor's onnx.TensorProto.DataType, as far as shape inference finds it."""
    import onnx

    graph = onnx.shape_inference.infer_shapes(proto).graph
    values = {v.name: v.type.tensor_type.elem_type for v in (*graph.value_info, *graph.input, *graph.output)}
    return values | {tensor.name: tensor.data_type for tensor in graph.initializer}


def _format(name: str, producers: Mapping[str, Any], types: Mapping[str, int]) -> str:
    """The number format of one factor, seen through operators that only move numbers."""
    node = producers.get(name)
    while node is not None and node.op_type in MOVERS and node.input:
        name = node.input[0]
        node = producers.get(name)
    if node is not None and node.op_type == "DequantizeLinear":
        name = node.input[0]
    return _FORMATS.get(types.get(name, 0), "unknown")
