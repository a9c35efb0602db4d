"""What the load generator is asked and what it records: msgpack over its pipes. Also starts its process."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Literal

import msgspec
import numpy as np
from numpy.typing import NDArray

from benchmarks.load.pipe import Child
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


class Recording(msgspec.Struct, frozen=True, kw_only=True):
    """One run: arrays of one entry per request, in the order of the answers, as raw bytes (see Arrays)."""

    request: bytes
    status: bytes
    due_s: bytes
    latency_s: bytes
    lag_s: bytes
    wall_s: float  # from the first request to the last answer
    cpu_s: float  # of the generator's process during that time
    num_wrong: int  # answers of status 200 that are not the expected ones
    num_bytes: int  # received
    notes: tuple[str, ...]  # the first answers that were wrong or not 200, and failures of connections
    failure: str = ""  # why there was no run at all: the server cannot be reached


class Arrays:
    """A recording's arrays, (N,) each: one entry per request."""

    def __init__(self, recording: Recording) -> None:
        self.request: NDArray[np.uint32] = np.frombuffer(recording.request, dtype=np.uint32)  # its place in the job
        self.status: NDArray[np.uint16] = np.frombuffer(recording.status, dtype=np.uint16)  # 0: no answer
        # Since the run began, when it was sent; in open load when it was to be sent.
        self.due_s: NDArray[np.float64] = np.frombuffer(recording.due_s, dtype=np.float64)
        self.latency_s: NDArray[np.float64] = np.frombuffer(recording.latency_s, dtype=np.float64)  # from then on
        self.lag_s: NDArray[np.float64] = np.frombuffer(recording.lag_s, dtype=np.float64)  # open load: sent so late


class Generator(Child):
    """The generator's process. Use as a context."""

    def __init__(self, command: Sequence[str] = (sys.executable, "-m", "benchmarks.load.generator")) -> None:
        super().__init__("the load generator", command)
        self._decoder = msgspec.msgpack.Decoder(Recording)

    def run(self, job: Job) -> Recording:
        """Raises EngineryError when the server cannot be reached, or the generator has died."""
        recording = self._decoder.decode(self.ask(msgspec.msgpack.encode(job)))
        if recording.failure:
            raise EngineryError(recording.failure)
        return recording
