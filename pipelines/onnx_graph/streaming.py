"""Read one ONNX file without its heavy tensors, and write one a tensor at a time: the only module that knows protobuf.

protobuf needs the whole message in memory: twice to read it, as bytes and as tensors, and five times to write it, as
tensors, while it grows (twice what it holds), as the buffer that is left, as bytes. What is read and written here is
the same, to the byte (tests/pipelines/onnx_graph/test_streaming.py).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from pipelines.errors import ExportError

# Numbers of fields in onnx.proto, which is frozen. A message is its fields in the order of their numbers.
MODEL_GRAPH, GRAPH_INITIALIZER, TENSOR_RAW_DATA = 7, 5, 9
# How a field's content is delimited: kind -> its bytes; of a varint and of what tells its length, they are found out.
_VARINT, _EIGHT_BYTES, _LENGTH_DELIMITED, _FOUR_BYTES = 0, 1, 2, 5
_FIXED = {_EIGHT_BYTES: 8, _FOUR_BYTES: 4}

Refer = Callable[[Any, str, int, int], None]  # a tensor, the file, offset and length: have it lie there


@dataclass(frozen=True, kw_only=True)
class _Framed:
    """A tensor's message without its bytes, which come between."""

    head: bytes
    tail: bytes
    num_data_bytes: int

    @property
    def size(self) -> int:
        return len(self.head) + self.num_data_bytes + len(self.tail)


@dataclass(frozen=True, kw_only=True)
class _Span:
    """Where a field lies in a file."""

    number: int
    begin: int  # of the field
    start: int  # of its content
    end: int

    def of(self, file: BinaryIO) -> bytes:
        return _bytes(file, self.begin, self.end)


def read(path: Path, heavy_bytes: int, refer: Refer) -> Any:
    """The file's `onnx.ModelProto`; tensors of that many bytes or more are left where they are. Raises ExportError."""
    import onnx
    from google.protobuf.message import DecodeError

    model = onnx.ModelProto()
    try:
        with path.open("rb") as file:
            for field in _fields(file, 0, path.stat().st_size):
                if field.number != MODEL_GRAPH:
                    model.MergeFromString(field.of(file))
                    continue
                for inner in _fields(file, field.start, field.end):
                    if inner.number == GRAPH_INITIALIZER:
                        _read_tensor(file, inner, model.graph.initializer.add(), heavy_bytes, path.name, refer)
                    else:
                        model.graph.MergeFromString(inner.of(file))
    except (DecodeError, EOFError) as error:
        raise ExportError(f"{path.name} is no whole ONNX file; export the model again") from error
    return model


def _read_tensor(file: BinaryIO, field: _Span, tensor: Any, heavy_bytes: int, name: str, refer: Refer) -> None:
    heavy: _Span | None = None
    for inner in _fields(file, field.start, field.end):
        if inner.number == TENSOR_RAW_DATA and inner.end - inner.start >= heavy_bytes:
            heavy = inner
        else:
            tensor.MergeFromString(inner.of(file))
    if heavy is not None:
        refer(tensor, name, heavy.start, heavy.end - heavy.start)


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


def _fields(file: BinaryIO, begin: int, end: int) -> Iterator[_Span]:
    """The fields of the message that lies there. Raises EOFError where they end elsewhere."""
    while begin < end:
        file.seek(begin)
        key = _read_varint(file)
        kind = key & 7
        length = _read_varint(file) if kind == _LENGTH_DELIMITED else _FIXED.get(kind)
        start = file.tell()
        if length is None:
            _read_varint(file)
        stop = file.tell() if length is None else start + length
        if kind not in (_VARINT, _LENGTH_DELIMITED, *_FIXED) or stop > end:
            raise EOFError
        yield _Span(number=key >> 3, begin=begin, start=start, end=stop)
        begin = stop


def _read_varint(file: BinaryIO) -> int:
    value = shift = 0
    while True:
        (byte,) = file.read(1) or (None,)
        if byte is None or shift > 63:
            raise EOFError
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value
        shift += 7


def _bytes(file: BinaryIO, begin: int, end: int) -> bytes:
    file.seek(begin)
    return file.read(end - begin)
