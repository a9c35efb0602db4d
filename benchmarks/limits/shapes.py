"""Batches for the engine alone: of one length, of a mixed stream sorted and packed, or those that a server ran."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from benchmarks.report.results import Cell
from benchmarks.scenarios.scenarios import Requests

MIXED_BUDGETS = (512, 1024, 2048)  # tokens of a batch
MIXED_ITEMS = 400
MIXED_MULTIPLE = 16  # OpenVINO prepares kernels anew for each width
LINE = re.compile(r"DEBUG batch of (\d+) x (\d+),")  # of the server's log


@dataclass(frozen=True, kw_only=True)
class Shape:
    """Batches that hold some items of a scenario."""

    words: str  # "13 x 300"
    batches: tuple[tuple[int, ...], ...]
    multiple: int = 1
    num_streams: int = 1  # so many at once

    @property
    def num_items(self) -> int:
        return sum(len(batch) for batch in self.batches)

    @property
    def num_tokens(self) -> int:
        return sum(sum(batch) for batch in self.batches)


def uniform(size: int, length: int, num_streams: int = 1) -> Shape:
    words = f"{_several(num_streams)}{size} x {length}"
    return Shape(words=words, batches=((length,) * size,), num_streams=num_streams)


def _several(num_streams: int) -> str:
    return f"{num_streams} at once of " if num_streams > 1 else ""


def mixed_shapes(requests: Requests, max_items: int, num_streams: int = 1) -> list[Shape]:
    """The stream's first items, sorted by length and packed: no server that must answer in order can pad less."""
    lengths = requests.lengths[:MIXED_ITEMS]
    return [
        Shape(
            words=f"{_several(num_streams)}sorted, {budget} tokens",
            batches=packed(lengths, max_tokens=budget, max_items=max_items),
            multiple=MIXED_MULTIPLE,
            num_streams=num_streams,
        )
        for budget in MIXED_BUDGETS
    ]


def packed(lengths: Sequence[int], *, max_tokens: int, max_items: int) -> tuple[tuple[int, ...], ...]:
    """Batches of items sorted by length: less padding than any server can reach that must answer in order."""
    batches: list[tuple[int, ...]] = []
    batch: list[int] = []
    for length in sorted(lengths):
        if batch and ((len(batch) + 1) * length > max_tokens or len(batch) >= max_items):
            batches.append(tuple(batch))
            batch = []
        batch.append(length)
    return (*batches, tuple(batch)) if batch else tuple(batches)


def same_batch(cell: Cell, requests: Requests, *, max_items: int) -> Shape | None:
    """The batch that the server ran in this cell, as its metrics tell: of the mean size, of the scenario's length.

    None for a mixed stream, whose batches differ (see batches_of), and where the server does not tell.
    """
    size = cell.inside.batch_items if cell.inside is not None else None
    if size is None or requests.scenario.kind == "mixed":
        return None
    streams = round(cell.inside.engine_streams or 1) if cell.inside is not None else 1
    alone = cell.load.concurrency * requests.scenario.batch <= 1
    return uniform(max(1, min(round(size), max_items)), requests.longest, 1 if alone else streams)


def batches_of(log: str, num_streams: int) -> Shape:
    """The batches that a server has run, as its log at DEBUG tells them, padding included."""
    batches = tuple((int(width),) * int(size) for size, width in LINE.findall(log))
    return Shape(words=f"its own {len(batches)} batches", batches=batches, num_streams=num_streams)
