"""Read an ONNX file without its large tensors, and write one a tensor at a time: the only module that knows protobuf.

protobuf holds a message twice to read it (as bytes and as tensors) and up to five times to write it. This module reads
and writes the same bytes (tests/pipelines/onnx_graph/test_streaming.py) and holds one tensor. onnx_ir does not: ADR 12.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from pipelines.errors import ExportError

# Numbers of fields in onnx.proto, which is frozen. A serialized message lists its fields by ascending number.
MODEL_GRAPH, GRAPH_INITIALIZER, TENSOR_RAW_DATA = 7, 5, 9
# protobuf's wire types. A field of the last two has a fixed length; a varint ends itself; others begin with a length.
_VARINT, _LENGTH_DELIMITED, _EIGHT_BYTES, _FOUR_BYTES = 0, 2, 1, 5
_FIXED_LENGTHS = {_EIGHT_BYTES: 8, _FOUR_BYTES: 4}

Externalize = Callable[[Any, str, int, int], None]  # (tensor, file, offset, length): in place


@dataclass(frozen=True, kw_only=True)
class _Frame:
    """A serialized tensor without its raw data, which lies between head and tail."""

    head: bytes
    tail: bytes
    num_data_bytes: int

    @property
    def size(self) -> int:
        return len(self.head) + self.num_data_bytes + len(self.tail)


@dataclass(frozen=True, kw_only=True)
class _Field:
    """A field's place in a file."""

    number: int
    begin: int  # offset of the field
    start: int  # offset of its content
    end: int

    def read(self, file: BinaryIO) -> bytes:
        file.seek(self.begin)
        return file.read(self.end - self.begin)


def read(path: Path, min_external_bytes: int, externalize: Externalize) -> Any:
    """The file's `onnx.ModelProto`; tensors of min_external_bytes or more stay in the file. Raises ExportError."""
    import onnx
    from google.protobuf.message import DecodeError

    model = onnx.ModelProto()
    try:
        with path.open("rb") as file:
            for field in _fields(file, 0, path.stat().st_size):
                if field.number != MODEL_GRAPH:
                    model.MergeFromString(field.read(file))
                    continue
                for inner in _fields(file, field.start, field.end):
                    if inner.number != GRAPH_INITIALIZER:
                        model.graph.MergeFromString(inner.read(file))
                        continue
                    tensor = model.graph.initializer.add()
                    large = _read_tensor(file, inner, tensor, min_external_bytes)
                    if large is not None:
                        externalize(tensor, path.name, large.start, large.end - large.start)
    except (DecodeError, EOFError) as error:
        raise ExportError(f"{path.name} is no whole ONNX file; export the model again") from error
    return model


def _read_tensor(file: BinaryIO, field: _Field, tensor: Any, min_external_bytes: int) -> _Field | None:
    """Read a tensor's fields into `tensor`. Returns its raw data's field unread if that is large."""
    large: _Field | None = None
    for inner in _fields(file, field.start, field.end):
        if inner.number == TENSOR_RAW_DATA and inner.end - inner.start >= min_external_bytes:
            large = inner
        else:
            tensor.MergeFromString(inner.read(file))
    return large


def write(model: Any, file: BinaryIO, itemsize: Callable[[int], int], content: Callable[[Any], bytes]) -> None:
    """The bytes that model.SerializeToString(deterministic=True) would give with all tensors inline.

    itemsize: bytes per element of a TensorProto.DataType. content: an external tensor's bytes. Raises ExportError.
    """
    tensors = model.graph.initializer
    frames = [_frame(tensor, itemsize) for tensor in tensors]
    headers = [_header(GRAPH_INITIALIZER, frame.size) for frame in frames]
    graph_head, graph_tail = _around(model.graph, GRAPH_INITIALIZER)
    size = len(graph_head) + sum(len(h) + f.size for h, f in zip(headers, frames, strict=True)) + len(graph_tail)
    model_head, model_tail = _around(model, MODEL_GRAPH)
    file.write(model_head + _header(MODEL_GRAPH, size) + graph_head)
    for tensor, header, frame in zip(tensors, headers, frames, strict=True):
        file.write(header + frame.head)
        if frame.num_data_bytes:
            data = content(tensor)
            if len(data) != frame.num_data_bytes:
                raise ExportError(
                    f"{tensor.name} has {len(data)} bytes, its shape {list(tensor.dims)} takes {frame.num_data_bytes}"
                )
            file.write(data)
        file.write(frame.tail)
    file.write(graph_tail + model_tail)


def _frame(tensor: Any, itemsize: Callable[[int], int]) -> _Frame:
    if tensor.data_location != tensor.EXTERNAL:
        return _Frame(head=tensor.SerializeToString(deterministic=True), tail=b"", num_data_bytes=0)
    inline = type(tensor)()
    inline.CopyFrom(tensor)
    inline.ClearField("external_data")
    inline.ClearField("data_location")
    head, tail = _around(inline, TENSOR_RAW_DATA)
    num_data_bytes = math.prod(tensor.dims) * itemsize(tensor.data_type)
    return _Frame(head=head + _header(TENSOR_RAW_DATA, num_data_bytes), tail=tail, num_data_bytes=num_data_bytes)


def _around(message: Any, number: int) -> tuple[bytes, bytes]:
    """The serialized fields of lower and of higher number."""
    before, after = type(message)(), type(message)()
    before.CopyFrom(message)
    after.CopyFrom(message)
    for field, _ in message.ListFields():
        if field.number >= number:
            before.ClearField(field.name)
        if field.number <= number:
            after.ClearField(field.name)
    return before.SerializeToString(deterministic=True), after.SerializeToString(deterministic=True)


def _header(number: int, length: int) -> bytes:
    """The tag and the length before a field's content."""
    return _varint(number << 3 | _LENGTH_DELIMITED) + _varint(length)


def _varint(value: int) -> bytes:
    """Seven bits per byte, the lowest first; the eighth bit is set in all but the last byte."""
    data = bytearray()
    while value > 0x7F:
        data.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*data, value])


def _fields(file: BinaryIO, begin: int, end: int) -> Iterator[_Field]:
    """The fields of the message between two offsets. Raises EOFError where they do not end at the second."""
    while begin < end:
        file.seek(begin)
        tag = _read_varint(file)
        wire_type = tag & 7
        length = _read_varint(file) if wire_type == _LENGTH_DELIMITED else _FIXED_LENGTHS.get(wire_type)
        start = file.tell()
        if length is None:
            _read_varint(file)
        stop = file.tell() if length is None else start + length
        if wire_type not in (_VARINT, _LENGTH_DELIMITED, *_FIXED_LENGTHS) or stop > end:
            raise EOFError
        yield _Field(number=tag >> 3, begin=begin, start=start, end=stop)
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
