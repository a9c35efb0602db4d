"""A child process that answers one message at a time over its pipes: how the generator and the raw engine are asked."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import IO, Self

from pipelines.errors import EngineryError

STOP_TIMEOUT_S = 5.0


class Child:
    """The parent's side. Use as a context: leaving it closes the child's input, which ends it."""

    def __init__(self, name: str, command: Sequence[str]) -> None:
        """name: of the child in errors, "the load generator"."""
        self._name = name
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)

    @property
    def pid(self) -> int:
        return self._process.pid

    def ask(self, message: bytes) -> bytes:
        """The child's answer. Raises EngineryError when the child has died."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        try:
            write_message(self._process.stdin, message)
            answer = read_message(self._process.stdout)
        except BrokenPipeError:
            answer = None
        if answer is None:
            raise EngineryError(f"{self._name} ended with code {self._process.wait(10)}; its error is above")
        return answer

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        with suppress(BrokenPipeError):  # what a process that has died did not read
            self._process.stdin.close()
        try:
            self._process.wait(STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait(STOP_TIMEOUT_S)
        self._process.stdout.close()


def answer_all(answer: Callable[[bytes], bytes]) -> None:
    """The child's side: messages from standard input, answers to standard output, until the input ends."""
    while (message := read_message(sys.stdin.buffer)) is not None:
        write_message(sys.stdout.buffer, answer(message))


def write_message(stream: IO[bytes], data: bytes) -> None:
    """All of it: a stream that is not buffered, as PYTHONUNBUFFERED makes standard output, may take a part."""
    rest = memoryview(len(data).to_bytes(8, "little") + data)
    while rest:
        rest = rest[stream.write(rest) :]
    stream.flush()


def read_message(stream: IO[bytes]) -> bytes | None:
    """None: the other side has closed."""
    head = stream.read(8)
    if len(head) < 8:
        return None
    size = int.from_bytes(head, "little")
    parts = []
    while size and (part := stream.read(size)):
        parts.append(part)
        size -= len(part)
    return b"".join(parts) if not size else None
