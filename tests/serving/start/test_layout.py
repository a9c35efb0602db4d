"""How cores are given to an engine: the most throughput that keeps a lone text quick, measured once."""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from serving.backends.base import Inputs
from serving.contract.profile import ShapeRange
from serving.start.layout import Layout, choose, recall, remember
from serving.tasks.towers import TextTower

TOWER = TextTower(
    dimension=2,
    pad_token_id=0,
    input_names=("input_ids",),
    shapes=ShapeRange(min=(1, 1), opt=(8, 64), max=(8, 64)),
)


class Engine:
    """Sleeps so long for a batch; runs as many at once as it has streams."""

    name = "sleeping"
    input_names = ("input_ids",)

    def __init__(self, num_streams: int, seconds: float, *, lends_all: bool) -> None:
        self._streams, self._seconds, self.closed = threading.Semaphore(num_streams), seconds, False
        self.lends_all = lends_all

    def infer(self, inputs: Inputs, *, alone: bool = False) -> NDArray[np.float32]:
        assert not self.closed
        with self._streams:
            time.sleep(self._seconds)
        return np.zeros((len(inputs["input_ids"]), 2), dtype=np.float32)

    def realized_precision(self) -> Mapping[str, float]:
        return {}

    def close(self) -> None:
        self.closed = True


def chosen(
    seconds: Mapping[int, float], num_threads: int, *, lends_all: bool = False
) -> tuple[Layout, list[int], list[int]]:
    """What is chosen, the streams of those loaded and of those left open, of engines that take so long with so many."""
    first = Engine(1, seconds[1], lends_all=lends_all)
    loaded = [(Layout(num_streams=1, num_threads=num_threads), first)]

    def load(layout: Layout) -> Engine:
        engine = Engine(layout.num_streams, seconds[layout.num_streams], lends_all=lends_all)
        loaded.append((layout, engine))
        return engine

    layout, engine = choose(first, load, TOWER, num_threads)
    assert (layout, engine) in loaded
    assert {known.num_threads for known, _ in loaded} == {num_threads}
    opened = [known.num_streams for known, other in loaded if not other.closed]
    return layout, [known.num_streams for known, _ in loaded[1:]], opened


def test_streams_are_doubled_while_that_pays_and_what_is_not_used_is_closed() -> None:
    assert chosen({1: 0.002, 2: 0.002, 4: 0.02}, 4) == (Layout(num_streams=2, num_threads=4), [2, 4], [2])


def test_a_layout_that_makes_a_lone_text_slow_is_not_chosen_for_its_throughput() -> None:
    slow = {1: 0.004, 2: 0.005, 4: 0.012, 8: 0.02}
    assert chosen(slow, 8) == (Layout(num_streams=2, num_threads=8), [2, 4], [2])


def test_an_engine_that_lends_all_threads_has_the_most_throughput_and_keeps_a_lone_text_quick() -> None:
    times = {1: 0.008, 2: 0.004, 4: 0.006, 8: 0.02}
    best = Layout(num_streams=4, num_threads=8, alone_threads=4)
    assert chosen(times, 8, lends_all=True) == (best, [2, 4, 8, 4], [4])


def test_streams_that_make_what_runs_beside_others_slow_are_not_chosen_though_threads_are_lent() -> None:
    slow = {1: 0.004, 2: 0.0055, 4: 0.012, 8: 0.02}
    best = Layout(num_streams=2, num_threads=8, alone_threads=8)
    assert chosen(slow, 8, lends_all=True) == (best, [2, 4, 2], [2])


def test_threads_are_not_lent_where_a_stream_is_as_quick_with_its_own() -> None:
    for seconds in (0.006, 0.0021):
        assert chosen({1: seconds, 2: 0.002}, 2, lends_all=True) == (Layout(num_streams=2, num_threads=2), [2], [2])


@pytest.mark.parametrize(("seconds", "num_threads"), [(0.002, 1), (0.05, 8), (0.002, 3)])
def test_one_core_a_heavy_engine_and_cores_that_do_not_divide_are_not_measured(
    seconds: float, num_threads: int
) -> None:
    alone = Layout(num_streams=1, num_threads=num_threads)
    assert chosen({1: seconds}, num_threads) == chosen({1: seconds}, num_threads, lends_all=True) == (alone, [], [1])


def test_what_was_chosen_is_remembered_for_as_many_threads(tmp_path: Path) -> None:
    file, layout = tmp_path / "layouts" / "a.json", Layout(num_streams=2, num_threads=4)
    assert recall(file, 4) is None
    remember(file, layout)
    assert recall(file, 4) == layout
    assert recall(file, 8) is None
    assert [path.name for path in file.parent.iterdir()] == ["a.json"]


@pytest.mark.parametrize("content", [b"", b"{", b'{"num_streams": 0, "num_threads": 4}', b'{"num_streams": 9}', b"[]"])
def test_a_file_that_says_nothing_sensible_is_measured_again(tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "a.json"
    file.write_bytes(content)
    assert recall(file, 4) is None


def test_nothing_is_remembered_where_nothing_may_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    remember(tmp_path / "file" / "a.json", Layout(num_streams=1, num_threads=1))
    remember(None, Layout(num_streams=1, num_threads=1))
    assert recall(None, 1) is None
