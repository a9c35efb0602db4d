"""A process's memory while something else runs: readings on a clock, and whether they grow."""

from __future__ import annotations

import threading
import time
from contextlib import suppress

import numpy as np

from benchmarks.watch import procfs
from benchmarks.watch.procfs import Memory

MIB = 2**20


class MemoryWatch:
    """Reads it until the context ends."""

    def __init__(self, pid: int, every_s: float = 1.0) -> None:
        self._pid, self._every_s = pid, every_s
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._read, daemon=True)
        self.times: list[float] = []  # seconds since the watch began
        self.memory: list[Memory] = []

    def __enter__(self) -> MemoryWatch:
        self._start = time.monotonic()
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join(5)

    @property
    def resident(self) -> list[int]:
        return [memory.resident for memory in self.memory]

    def resident_at(self, second: float) -> int:
        """The first reading from then on, else the last."""
        readings = zip(self.times, self.resident, strict=True)
        return next((resident for time_s, resident in readings if time_s >= second), self.resident[-1])

    def growth(self, after_s: float) -> tuple[float, float]:
        """(bytes between the first and the last minute's medians, bytes per hour by a straight line), from then on."""
        times = np.array(self.times)
        settled = times >= after_s
        if settled.sum() < 2:
            return 0.0, 0.0
        seconds, resident = times[settled], np.array(self.resident, dtype=np.float64)[settled]
        width = min(60.0, (seconds[-1] - seconds[0]) / 4)
        first = np.median(resident[seconds <= seconds[0] + width])
        last = np.median(resident[seconds >= seconds[-1] - width])
        return float(last - first), float(np.polyfit(seconds, resident, 1)[0] * 3600)

    def _read(self) -> None:
        while not self._stop.is_set():
            with suppress(OSError):
                memory = procfs.memory(self._pid)
                self.times.append(time.monotonic() - self._start)
                self.memory.append(memory)
            self._stop.wait(self._every_s)
