"""A load generator's recording and a watch's readings, for tests that judge them."""

from __future__ import annotations

import os
from array import array

from benchmarks.load.job import Recording
from benchmarks.watch.memory import MemoryWatch
from benchmarks.watch.procfs import Memory


def recording(request: list[int], status: list[int], latency_s: list[float], wall_s: float = 2.0) -> Recording:
    zeros = array("d", [0.0] * len(request)).tobytes()
    return Recording(
        request=array("I", request).tobytes(),
        status=array("H", status).tobytes(),
        due_s=zeros,
        latency_s=array("d", latency_s).tobytes(),
        lag_s=zeros,
        wall_s=wall_s,
        cpu_s=0.1,
        num_wrong=0,
        num_bytes=0,
        notes=(),
    )


def watch(resident: list[int], every_s: float = 1.0) -> MemoryWatch:
    """One that has read these bytes, at even distances."""
    memory_watch = MemoryWatch(os.getpid())
    memory_watch.times = [n * every_s for n in range(len(resident))]
    memory_watch.memory = [Memory(resident=value, peak=value, anonymous=value) for value in resident]
    return memory_watch
