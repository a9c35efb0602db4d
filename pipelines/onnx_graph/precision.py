"""What a typed ONNX file says of itself, and how one that ONNX Runtime has no CPU kernels for is made to run on it."""

from __future__ import annotations

import tempfile
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pipelines.onnx_graph import external_data
from serving.contract.profile import Precision

# Operators that move numbers without changing them: what they give out is as rounded as what they took.
_MOVERS = frozenset(
    {
        *("Concat", "Constant", "ConstantOfShape", "Expand", "Flatten", "Gather", "Identity", "Reshape", "Slice"),
        *("Split", "Squeeze", "Transpose", "Unsqueeze"),
    }
)
_PRODUCTS = frozenset({"Attention", "Conv", "Gemm", "MatMul"})
_FORMATS = {1: "fp32", 2: "int8", 3: "int8", 10: "fp16", 16: "bf16", 17: "fp8"}  # onnx.TensorProto.DataType
_WIDEST_FIRST = ("fp32", "fp16", "bf16", "fp8", "int8")


def realized_precision(model: bytes) -> dict[str, float]:
    """The share of matrix products in each number format: {"fp16": 0.25, "fp8": 0.75}. Each product counts as one.

    A product is of a format that its two factors share, else of the wider one; a factor that a DequantizeLinear
    gives is of the format it was quantized to.
    """
    proto = _parse(model)
    for tensor in proto.graph.initializer:  # types need no weights, and would copy them
        if len(tensor.raw_data) >= external_data.HEAVY_BYTES:
            external_data.refer(tensor, "elsewhere", 0, 0)
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
    Weights are widened here; those that lie beside the graph by ONNX Runtime, when it loads them.
    """
    import onnx
    from onnx import TensorProto, helper

    proto = _parse(model)
    graph, types = proto.graph, _types(proto)
    narrow = TensorProto.BFLOAT16 if precision is Precision.BF16 else TensorProto.FLOAT16
    nodes = []
    for tensor in graph.initializer:
        if not external_data.is_external(tensor):
            _widen(tensor, narrow)
        elif tensor.data_type == narrow:
            name, tensor.name = tensor.name, f"{tensor.name}/{precision}"
            nodes.append(helper.make_node("Cast", [tensor.name], [name], to=TensorProto.FLOAT))
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
    if not external_data.is_light(proto):  # what lies elsewhere cannot be looked at from here
        onnx.checker.check_model(proto)
    return bytes(proto.SerializeToString())


def with_wide_weights(path: Path, scratch: Path) -> Path:
    """A graph whose fp8 weights are written out in their scale's format: DequantizeLinear would do it at every run.

    The same numbers: a product of an fp8 number and an fp16 scale is exact in float32, and is rounded once. Returns
    the path itself where there is nothing to do.
    """
    import numpy as np
    from onnx import TensorProto, numpy_helper

    model = external_data.read(path)
    graph = model.graph
    tensors = {tensor.name: tensor for tensor in graph.initializer}
    scales: dict[str, Any] = {}
    nodes = []
    for node in graph.node:
        weight = tensors.get(node.input[0]) if node.op_type == "DequantizeLinear" else None
        if weight is None or weight.data_type != TensorProto.FLOAT8E4M3FN:
            nodes.append(node)
            continue
        scale = tensors[node.input[1]]
        axis = next((attribute.i for attribute in node.attribute if attribute.name == "axis"), 1)
        shape = [-1 if index == axis else 1 for index in range(len(weight.dims))]
        scales[node.output[0]] = numpy_helper.to_array(scale).reshape(shape if scale.dims else [])
        weight.name, weight.data_type = node.output[0], scale.data_type
    if not scales:
        return path

    def content(tensor: Any) -> bytes:
        data, scale = external_data.stored(tensor, path.parent), scales.pop(tensor.name, None)
        if scale is None:
            return data
        values = np.frombuffer(data, external_data.dtype_of(TensorProto.FLOAT8E4M3FN)).reshape(tuple(tensor.dims))
        wide = values.astype(np.float32) * scale.astype(np.float32)
        return bytes(wide.astype(scale.dtype).tobytes())

    for tensor in graph.initializer:
        if tensor.name in scales and not external_data.is_external(tensor):
            external_data.embed(tensor, content(tensor))
    graph.ClearField("node")
    graph.node.extend(nodes)
    folder = Path(tempfile.mkdtemp(dir=scratch, suffix=external_data.SUFFIX))
    return external_data.write(model, folder / "model.onnx", path.parent, beside=True, content=content)[0]


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
