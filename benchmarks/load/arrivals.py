"""When the requests of open load are due, and a timer that is exact enough to send them then."""

from __future__ import annotations

import contextlib
import ctypes
import os
import time

import numpy as np
from numpy.typing import NDArray

from benchmarks.load.job import Job


def arrivals(job: Job) -> NDArray[np.float64]:
    """(N,) seconds since the start at which requests are due."""
    if job.mode == "constant":
        due = np.arange(int(job.seconds * job.rate)) / job.rate
    else:
        rng = np.random.default_rng(job.seed)
        gaps = rng.exponential(1 / job.rate, int(job.seconds * job.rate * 1.2) + 64)
        due = np.cumsum(gaps)
        due = due[due < job.seconds]
    return due[: job.max_requests] if job.max_requests else due


class Timer:
    """A timerfd: event loops round their own timers up to milliseconds, which is longer than some answers take.

    os.timerfd_create, which is the same, came with Python 3.13.
    """

    _ABSOLUTE = 1

    class _Spec(ctypes.Structure):
        _fields_ = (
            ("interval_s", ctypes.c_long),
            ("interval_ns", ctypes.c_long),
            ("value_s", ctypes.c_long),
            ("value_ns", ctypes.c_long),
        )

    def __init__(self) -> None:
        self._libc = ctypes.CDLL(None, use_errno=True)
        self.fd = self._libc.timerfd_create(time.CLOCK_MONOTONIC, os.O_NONBLOCK | os.O_CLOEXEC)
        if self.fd < 0:
            raise OSError(ctypes.get_errno(), "timerfd_create")

    def set(self, when: float) -> None:
        """Readable at that time of time.monotonic(), at once if it has passed."""
        whole = int(when)
        spec = self._Spec(0, 0, whole, max(1, int((when - whole) * 1e9)))
        self._libc.timerfd_settime(self.fd, self._ABSOLUTE, ctypes.byref(spec), None)

    def clear(self) -> None:
        with contextlib.suppress(BlockingIOError):
            os.read(self.fd, 8)

    def close(self) -> None:
        os.close(self.fd)
