"""What a typed ONNX file says of itself, and how one that ONNX Runtime has no CPU kernels for is made to run on it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

from serving.profile import Precision

# Operators that move numbers without changing them: what they give out is as rounded as what they took.
_MOVERS = frozenset(
    {
        *("Concat", "Constant", "ConstantOfShape", "Expand", "Flatten", "Gather", "Identity", "Reshape", "Slice"),
        *("Split", "Squeeze", "Transpose", "Unsqueeze"),
    }
)
_PRODUCTS = frozenset({"Attention", "Conv", "Gemm", "MatMul"})
_FORMATS = {1: "fp32", 3: "int8", 10: "fp16", 16: "bf16", 17: "fp8"}  # onnx.TensorProto.DataType
_WIDEST_FIRST = ("fp32", "fp16", "bf16", "fp8", "int8")


def realized_precision(model: bytes) -> dict[str, float]:
    """The share of matrix products in each number format: {"fp16": 0.25, "fp8": 0.75}. Each product counts as one.

    A product is of a format that its two factors share, else of the wider one; a factor that a DequantizeLinear
    gives is of the format it was quantized to.
    """
    proto = _parse(model)
    graph, types = proto.graph, _types(proto)
    producers = {output: node for node in graph.node for output in node.output}
    counts: Counter[str] = Counter()
    for node in graph.node:
        if node.op_type in _PRODUCTS:
            formats = {_format(name, producers, types) for name in node.input[:2]}
            known = [name for name in _WIDEST_FIRST if name in formats]
            counts[known[0] if known else "unknown"] += 1
    return {name: count / counts.total() for name, count in sorted(counts.items())}


def runnable(model: bytes, precision: Precision) -> tuple[bytes, str]:
    """The file as ONNX Runtime's CPU provider runs it truly, and in words what was done to it ("" for nothing)."""
    if precision in (Precision.BF16, Precision.FP16):
        return in_float32(model, precision), f"each operator in float32, its result rounded to {precision}"
    return model, ""


def in_float32(model: bytes, precision: Precision) -> bytes:
    """Write 16-bit arithmetic out for a runtime that computes wider: it has no bf16 kernels, and runs fp16 as float32.

    Each operator computes in float32 and its result is rounded to 16 bits, as hardware does: 16-bit products are exact
    in float32, are accumulated there, and are rounded once. Every 16-bit number is a float32 number. Where a number
    does not fit fp16, it becomes inf here too: computed wider, a graph that overflows on every GPU would look perfect.
    """
    import onnx
    from onnx import TensorProto, helper

    proto = _parse(model)
    graph, types = proto.graph, _types(proto)
    narrow = TensorProto.BFLOAT16 if precision is Precision.BF16 else TensorProto.FLOAT16
    for tensor in graph.initializer:
        _widen(tensor, narrow)
    nodes = []
    for node in graph.node:
        nodes.append(node)
        for attribute in node.attribute:
            if attribute.HasField("t"):
                _widen(attribute.t, narrow)
        if node.op_type in _MOVERS:
            continue
        for index, name in enumerate(node.output):
            if types.get(name) != narrow:
                continue
            rounded = f"{name}/{precision}"
            if node.op_type == "Cast":  # it rounds already
                node.output[index] = rounded
            else:
                node.output[index] = f"{name}/float32"
                nodes.append(helper.make_node("Cast", [f"{name}/float32"], [rounded], to=narrow))
            nodes.append(helper.make_node("Cast", [rounded], [name], to=TensorProto.FLOAT))
    del graph.value_info[:]
    graph.ClearField("node")
    graph.node.extend(nodes)
    for value in (*graph.input, *graph.output):
        if value.type.tensor_type.elem_type == narrow:
            value.type.tensor_type.elem_type = TensorProto.FLOAT
    onnx.checker.check_model(proto)
    return bytes(proto.SerializeToString())


def _parse(model: bytes) -> Any:
    import onnx

    return onnx.load_model_from_string(model)


def _types(proto: Any) -> dict[str, int]:
    """Each tensor's element type, as onnx.TensorProto.DataType: what shape inference can tell."""
    import onnx

    graph = onnx.shape_inference.infer_shapes(proto).graph
    values = {v.name: v.type.tensor_type.elem_type for v in (*graph.value_info, *graph.input, *graph.output)}
    return values | {tensor.name: tensor.data_type for tensor in graph.initializer}


def _format(name: str, producers: Mapping[str, Any], types: Mapping[str, int]) -> str:
    """The number format of one factor, seen through operators that only move numbers."""
    node = producers.get(name)
    while node is not None and node.op_type in _MOVERS and node.input:
        name = node.input[0]
        node = producers.get(name)
    if node is not None and node.op_type == "DequantizeLinear":
        name = node.input[0]
    return _FORMATS.get(types.get(name, 0), "unknown")


def _widen(tensor: Any, narrow: int) -> None:
    """A 16-bit tensor to float32, in place."""
    import numpy as np
    from onnx import numpy_helper

    if tensor.data_type == narrow:
        tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor).astype(np.float32), tensor.name))
