"""Write a light ONNX graph as one file, a tensor at a time: the only module that knows how protobuf frames a message.

protobuf needs the whole message in memory, and five times: as tensors, while it grows (twice what it holds), as the
buffer that is left, as bytes. The file is the same, to the byte (tests/pipelines/test_external_data.py).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, BinaryIO

from pipelines.errors import ExportError

# Numbers of fields in onnx.proto, which is frozen. A message is its fields in the order of their numbers.
MODEL_GRAPH, GRAPH_INITIALIZER, TENSOR_RAW_DATA = 7, 5, 9
_LENGTH_DELIMITED = 2


@dataclass(frozen=True, kw_only=True)
class _Framed:
    """A tensor's message without its bytes, which come between."""

    head: bytes
    tail: bytes
    num_data_bytes: int

    @property
    def size(self) -> int:
        return len(self.head) + self.num_data_bytes + len(self.tail)


def write(model: Any, file: BinaryIO, itemsize: Callable[[int], int], content: Callable[[Any], bytes]) -> None:
    """What model.SerializeToString(deterministic=True) were, did its external tensors lie in it.

    itemsize: of a TensorProto.DataType. content: an external tensor's bytes. Raises ExportError.
    """
    tensors = model.graph.initializer
    framed = [_framed(tensor, itemsize) for tensor in tensors]
    graph_head, graph_tail = _around(model.graph, GRAPH_INITIALIZER)
    frames = [_field(GRAPH_INITIALIZER, tensor.size) for tensor in framed]
    size = len(graph_head) + sum(len(f) + t.size for f, t in zip(frames, framed, strict=True)) + len(graph_tail)
    model_head, model_tail = _around(model, MODEL_GRAPH)
    file.write(model_head + _field(MODEL_GRAPH, size) + graph_head)
    for tensor, frame, around in zip(tensors, frames, framed, strict=True):
        file.write(frame + around.head)
        if around.num_data_bytes:
            data = content(tensor)
            if len(data) != around.num_data_bytes:
                raise ExportError(
                    f"{tensor.name} has {len(data)} bytes, its shape {list(tensor.dims)} takes {around.num_data_bytes}"
                )
            file.write(data)
        file.write(around.tail)
    file.write(graph_tail + model_tail)


def _framed(tensor: Any, itemsize: Callable[[int], int]) -> _Framed:
    if tensor.data_location != tensor.EXTERNAL:
        return _Framed(head=tensor.SerializeToString(deterministic=True), tail=b"", num_data_bytes=0)
    inside = type(tensor)()
    inside.CopyFrom(tensor)
    inside.ClearField("external_data")
    inside.ClearField("data_location")
    head, tail = _around(inside, TENSOR_RAW_DATA)
    num_data_bytes = math.prod(tensor.dims) * itemsize(tensor.data_type)
    return _Framed(head=head + _field(TENSOR_RAW_DATA, num_data_bytes), tail=tail, num_data_bytes=num_data_bytes)


def _around(message: Any, number: int) -> tuple[bytes, bytes]:
    """The message's bytes before and after a field."""
    before, after = type(message)(), type(message)()
    before.CopyFrom(message)
    after.CopyFrom(message)
    for field, _ in message.ListFields():
        if field.number >= number:
            before.ClearField(field.name)
        if field.number <= number:
            after.ClearField(field.name)
    return before.SerializeToString(deterministic=True), after.SerializeToString(deterministic=True)


def _field(number: int, length: int) -> bytes:
    """What stands before a field of that many bytes."""
    return _varint(number << 3 | _LENGTH_DELIMITED) + _varint(length)


def _varint(value: int) -> bytes:
    """Seven bits a byte, the lowest first; the eighth says that more follow."""
    found = bytearray()
    while value > 0x7F:
        found.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*found, value])
