"""A watch on memory: growth is what comes after a process has settled."""

from __future__ import annotations

import os
import time

import pytest

from benchmarks.watch.memory import MIB, MemoryWatch
from tests.support.recordings import watch


def test_growth_is_seen_after_the_server_has_settled() -> None:
    steady = watch([100 * MIB] * 10 + [300 * MIB] * 100)
    assert steady.growth(10.0) == pytest.approx((0.0, 0.0), abs=1.0)
    growing = watch([100 * MIB + n * MIB for n in range(600)])
    growth, per_hour = growing.growth(0.0)
    assert growth / MIB == pytest.approx(540, abs=2)  # from the first minute's median to the last's
    assert per_hour / MIB == pytest.approx(3600, abs=1)


def test_a_watch_reads_a_real_process() -> None:
    with MemoryWatch(os.getpid(), every_s=0.01) as watch_of_this:
        time.sleep(0.1)
    assert len(watch_of_this.memory) >= 3
    assert all(value > 1 << 20 for value in watch_of_this.resident)
