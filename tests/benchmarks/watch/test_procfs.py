"""A process's memory, and the CPU time of its threads by name."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import pytest

from benchmarks.watch import procfs


def test_memory_of_a_real_process_is_read() -> None:
    memory = procfs.memory(os.getpid())
    assert 0 < memory.anonymous <= memory.resident <= memory.peak


def test_threads_of_a_real_process_are_told_apart() -> None:
    stop = threading.Event()
    other = threading.Thread(target=stop.wait)
    other.start()
    threads = procfs.threads(os.getpid())
    stop.set()
    other.join()
    assert {os.getpid(), other.native_id} <= set(threads)


def test_a_process_that_has_ended_raises(tmp_path: Path) -> None:
    with pytest.raises(OSError):
        procfs.memory(2**22 + 1)


def test_shares_of_pools_count_together_and_the_first_thread_is_main() -> None:
    before = {7: ("python", 1.0), 8: ("encoder-0", 0.0), 9: ("encoder-1", 0.0)}
    after = {7: ("python", 2.0), 8: ("encoder-0", 0.5), 9: ("encoder-1", 1.0), 10: ("batcher_0", 0.25)}
    assert procfs.shares(7, before, after, 2.0) == {"encoder": 0.75, "main": 0.5, "batcher": 0.125}


def test_a_name_with_brackets_and_spaces_is_read(tmp_path: Path) -> None:
    folder = tmp_path / "5" / "task" / "5"
    folder.mkdir(parents=True)
    (folder / "stat").write_text("5 (a) b (c) R 1 2 3 4 5 6 7 8 9 10 100 50 0 0 20 0 1 0 0 0 0")
    ticks = os.sysconf("SC_CLK_TCK")
    assert procfs.threads(5, tmp_path) == {5: ("a) b (c", 150 / ticks)}
