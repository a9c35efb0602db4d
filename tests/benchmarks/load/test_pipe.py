"""Messages between a child process and its parent, over streams that take and give parts."""

from __future__ import annotations

import io

import pytest

from benchmarks.load.pipe import read_message, write_message


class InParts(io.RawIOBase):
    """A pipe that is nearly full, or nearly empty: at most 1 000 bytes at a time."""

    def __init__(self) -> None:
        self.held = bytearray()

    def writable(self) -> bool:
        return True

    def write(self, data: object) -> int:
        part = bytes(memoryview(data)[:1000])  # type: ignore[arg-type]
        self.held += part
        return len(part)

    def read(self, size: int = -1) -> bytes:
        part = bytes(self.held[: min(size, 1000)])
        del self.held[: len(part)]
        return part


@pytest.mark.parametrize("size", [0, 1, 1000, 272_343])
def test_a_message_arrives_whole_over_a_pipe_that_takes_parts(size: int) -> None:
    pipe, message = InParts(), bytes(n % 251 for n in range(size))
    write_message(pipe, message)  # type: ignore[arg-type]
    assert read_message(pipe) == message  # type: ignore[arg-type]
    assert read_message(pipe) is None  # type: ignore[arg-type]


def test_a_message_that_breaks_off_is_none() -> None:
    pipe = InParts()
    write_message(pipe, b"x" * 5000)  # type: ignore[arg-type]
    del pipe.held[-1:]
    assert read_message(pipe) is None  # type: ignore[arg-type]
