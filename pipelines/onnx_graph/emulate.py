"""Emulate on ONNX Runtime's CPU provider what it has no kernels for: fp16 and bf16 arithmetic, fp8 weights."""

from __future__ import annotations

import tempfile
from collections.abc import Container, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from pipelines.onnx_graph import external_data
from pipelines.onnx_graph.precision import MOVERS, element_types
from serving.contract.profile import Precision


def emulate(model: bytes, precision: Precision) -> tuple[bytes, str]:
    """The graph as the CPU provider computes it faithfully, and a note of what was changed ("" for nothing)."""
    if precision in (Precision.BF16, Precision.FP16):
        return emulate_16_bit(model, precision), f"each operator in float32, its result rounded to {precision}"
    return model, ""


def emulate_16_bit(model: bytes, precision: Precision) -> bytes:
    """Compute each operator in float32 and round its result to fp16 or bf16, as hardware does.

    Hardware multiplies 16-bit numbers exactly, accumulates in float32 and rounds once; the CPU provider has no bf16
    kernels, and keeps fp16 in float32. A number that does not fit fp16 becomes inf here too: without rounding, a graph
    that overflows on every GPU would look perfect. Weights become float32 here; ONNX Runtime casts external ones when
    it loads them.
    """
    import onnx
    from onnx import TensorProto

    proto = external_data.parse(model)
    graph, types = proto.graph, element_types(proto)
    low = TensorProto.BFLOAT16 if precision is Precision.BF16 else TensorProto.FLOAT16
    nodes = [*_weights_in_float32(graph, low, precision)]
    for node in graph.node:
        nodes.append(node)
        for attribute in node.attribute:
            if attribute.HasField("t"):
                _to_float32(attribute.t, low)
        if node.op_type not in MOVERS:
            nodes += _rounded(node, {name for name in node.output if types.get(name) == low}, low, precision)
    del graph.value_info[:]
    graph.ClearField("node")
    graph.node.extend(nodes)
    for value in (*graph.input, *graph.output):
        if value.type.tensor_type.elem_type == low:
            value.type.tensor_type.elem_type = TensorProto.FLOAT
    if not external_data.is_externalized(proto):  # the checker would look for the data beside this process
        onnx.checker.check_model(proto)
    return bytes(proto.SerializeToString())


def _weights_in_float32(graph: Any, low: int, precision: Precision) -> Iterator[Any]:
    """Convert the weights in place; of those in external data, give the nodes that cast them."""
    from onnx import TensorProto, helper

    for tensor in graph.initializer:
        if not external_data.is_external(tensor):
            _to_float32(tensor, low)
        elif tensor.data_type == low:
            name, tensor.name = tensor.name, f"{tensor.name}/{precision}"
            yield helper.make_node("Cast", [tensor.name], [name], to=TensorProto.FLOAT)


def _rounded(node: Any, low_outputs: Container[str], low: int, precision: Precision) -> Iterator[Any]:
    """Rename a node's outputs of low precision, and give the nodes that round each and call it by its name."""
    from onnx import TensorProto, helper

    for index, name in enumerate(node.output):
        if name not in low_outputs:
            continue
        rounded = f"{name}/{precision}"
        if node.op_type == "Cast":  # it rounds already
            node.output[index] = rounded
        else:
            node.output[index] = f"{name}/float32"
            yield helper.make_node("Cast", [f"{name}/float32"], [rounded], to=low)
        yield helper.make_node("Cast", [rounded], [name], to=TensorProto.FLOAT)


def dequantize_weights(path: Path, scratch: Path) -> Path:
    """Replace fp8 weights by their values in their scale's format: DequantizeLinear would compute these at every run.

    The values are the same: the product of an fp8 number and an fp16 scale is exact in float32, and is rounded once.
    Returns the path itself for a graph without fp8 weights.
    """
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
        data, scale = external_data.tensor_bytes(tensor, path.parent), scales.pop(tensor.name, None)
        if scale is None:
            return data
        values = np.frombuffer(data, external_data.dtype_of(TensorProto.FLOAT8E4M3FN)).reshape(tuple(tensor.dims))
        return bytes((values.astype(np.float32) * scale.astype(np.float32)).astype(scale.dtype).tobytes())

    for tensor in graph.initializer:
        if tensor.name in scales and not external_data.is_external(tensor):
            external_data.inline(tensor, content(tensor))
    graph.ClearField("node")
    graph.node.extend(nodes)
    folder = Path(tempfile.mkdtemp(dir=scratch, suffix=external_data.SUFFIX))
    return external_data.write(model, folder / "model.onnx", path.parent, external=True, content=content)[0]


def _to_float32(tensor: Any, low: int) -> None:
    """A tensor of the 16-bit type `low` to float32, in place."""
    from onnx import numpy_helper

    if tensor.data_type == low:
        tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor).astype(np.float32), tensor.name))
