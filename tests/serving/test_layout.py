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
from serving.layout import Layout, choose, recall, remember
from serving.profile import ShapeRange
from serving.tasks.text import TextTower

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

    def __init__(self, num_streams: int, seconds: float) -> None:
        self._streams, self._seconds, self.closed = threading.Semaphore(num_streams), seconds, False

    def infer(self, inputs: Inputs) -> NDArray[np.float32]:
        assert not self.closed
        with self._streams:
            time.sleep(self._seconds)
        return np.zeros((len(inputs["input_ids"]), 2), dtype=np.float32)

    def realized_precision(self) -> Mapping[str, float]:
        return {}

    def close(self) -> None:
        self.closed = True


def chosen(seconds: Mapping[int, float], num_threads: int) -> tuple[int, list[int], list[int]]:
    """Streams chosen, those loaded, and those left open, of engines that take so long with so many streams."""
    engines = {n: Engine(n, s) for n, s in seconds.items()}
    loaded = []

    def load(layout: Layout) -> Engine:
        loaded.append(layout.num_streams)
        assert layout.num_threads == num_threads
        return engines[layout.num_streams]

    layout, engine = choose(engines[1], load, TOWER, num_threads)
    assert engine is engines[layout.num_streams]
    return layout.num_streams, loaded, [n for n, e in engines.items() if not e.closed and n in (1, *loaded)]


def test_streams_are_doubled_while_that_pays_and_what_is_not_used_is_closed() -> None:
    assert chosen({1: 0.002, 2: 0.002, 4: 0.02}, 4) == (2, [2, 4], [2])


def test_a_layout_that_makes_a_lone_text_slow_is_not_chosen_for_its_throughput() -> None:
    assert chosen({1: 0.004, 2: 0.005, 4: 0.012, 8: 0.02}, 8) == (2, [2, 4], [2])


@pytest.mark.parametrize(("seconds", "num_threads"), [(0.002, 1), (0.05, 8), (0.002, 3)])
def test_one_core_a_heavy_engine_and_cores_that_do_not_divide_are_not_measured(
    seconds: float, num_threads: int
) -> None:
    assert chosen({1: seconds}, num_threads) == (1, [], [1])


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
