"""What the load generator is told and what it tells back: msgpack over its pipes. Also starts and stops its process."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from contextlib import suppress
from typing import IO, Literal

import msgspec
import numpy as np
from numpy.typing import NDArray

from pipelines.errors import EngineryError


class Expected(msgspec.Struct, frozen=True, kw_only=True):
    """What the right answers hold: for each request its float32 numbers, (N, D) vectors or (N,) scores, in order."""

    kind: Literal["vectors", "scores"]
    dimension: int  # D; 1 for scores
    numbers: tuple[bytes, ...]  # little-endian float32, one for each request
    least_cosine: float = 0.999  # of a vector with the one expected
    most_difference: float = 0.05  # of a score from the one expected


class Job(msgspec.Struct, frozen=True, kw_only=True):
    """One run of load against one address. Requests are sent in turn, over and over."""

    host: str
    port: int
    tls: bool = False
    requests: tuple[bytes, ...]  # whole HTTP requests
    mode: Literal["closed", "constant", "poisson"] = "closed"
    concurrency: int = 1  # closed: connections. Open: connections that are there before the first request
    max_connections: int = 2048  # open: more than this many unanswered requests wait in the generator
    rate: float = 0.0  # open: requests per second
    seconds: float = 1.0  # for how long requests are sent
    min_requests: int = 0  # closed: at least so many, also when that takes longer
    max_requests: int = 0  # 0: no limit
    timeout_s: float = 120.0  # for one answer
    seed: int = 0  # of the arrivals
    first: int = 0  # the request to begin with
    expected: Expected | None = None  # given: every answer of status 200 is read and compared


class Outcome(msgspec.Struct, frozen=True, kw_only=True):
    """What happened: arrays of one entry per request, in the order of the answers, as raw bytes."""

    which: bytes  # uint32: the request sent
    status: bytes  # uint16; 0: no answer
    began: bytes  # float64 seconds since the run began; open: when it was meant to be sent
    took: bytes  # float64 seconds from then to the whole answer
    lag: bytes  # float64 seconds from when it was meant to be sent until it was; closed: 0
    wall_s: float  # from the first request to the last answer
    cpu_s: float  # of the generator's process during that time
    num_wrong: int  # answers of status 200 that are not the expected ones
    num_bytes: int  # received
    notes: tuple[str, ...]  # the first answers that were wrong or not 200, and failures of connections
    failure: str = ""  # why there was no run at all: the server cannot be reached


class Arrays:
    """An outcome's arrays."""

    def __init__(self, outcome: Outcome) -> None:
        self.which: NDArray[np.uint32] = np.frombuffer(outcome.which, dtype=np.uint32)
        self.status: NDArray[np.uint16] = np.frombuffer(outcome.status, dtype=np.uint16)
        self.began: NDArray[np.float64] = np.frombuffer(outcome.began, dtype=np.float64)
        self.took: NDArray[np.float64] = np.frombuffer(outcome.took, dtype=np.float64)
        self.lag: NDArray[np.float64] = np.frombuffer(outcome.lag, dtype=np.float64)


class Generator:
    """The generator's process. Use as a context."""

    def __init__(self, command: Sequence[str] = (sys.executable, "-m", "benchmarks.load.generator")) -> None:
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        self._decoder = msgspec.msgpack.Decoder(Outcome)

    @property
    def pid(self) -> int:
        return self._process.pid

    def run(self, job: Job) -> Outcome:
        """Raises EngineryError when the server cannot be reached, or the generator has died."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        try:
            write_message(self._process.stdin, msgspec.msgpack.encode(job))
            answer = read_message(self._process.stdout)
        except BrokenPipeError:
            answer = None
        if answer is None:
            raise EngineryError(f"the load generator ended with code {self._process.wait(10)}; its error is above")
        outcome = self._decoder.decode(answer)
        if outcome.failure:
            raise EngineryError(outcome.failure)
        return outcome

    def close(self) -> None:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        with suppress(BrokenPipeError):  # what a process that has died did not read
            self._process.stdin.close()
        try:
            self._process.wait(5)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait(5)
        self._process.stdout.close()

    def __enter__(self) -> Generator:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


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
