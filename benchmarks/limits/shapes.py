"""What the engine alone can do in each scenario: batch shapes tried once, the best of them timed in every round."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from benchmarks.limits.raw_engine import RawEngine, Timed, packed
from benchmarks.report import figures
from benchmarks.report.figures import Figures
from benchmarks.report.results import Cell, Load
from benchmarks.scenarios.scenarios import Requests

NAME = "engine alone"
QUERY_BATCHES = (1, 2, 3, 4, 6, 8, 11, 15)
LONG_BATCHES = (1, 4, 8, 13, 16, 32)
MIXED_BUDGETS = (512, 1024, 2048)  # tokens of a batch
MIXED_ITEMS = 400
MIXED_MULTIPLE = 16  # OpenVINO prepares kernels anew for each width
TRY_S, ROUND_S = 0.25, 0.5
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


@dataclass(kw_only=True)
class Limit:
    """One scenario's limit under one load, as rounds go by."""

    scenario: str
    load: Load
    engine: RawEngine
    shapes: Sequence[Shape]
    chosen: Shape | None = None
    rounds: list[Figures] = field(default_factory=list)

    def take_turn(self, known: dict[tuple[int, str], NDArray[np.float64]]) -> None:
        """known: what was timed in this round already; loads share their shapes."""
        first = self.chosen is None
        asked = self.shapes if self.chosen is None else [self.chosen]
        for shape in asked:
            key = (id(self.engine), shape.words)
            if key not in known:
                known[key] = self.engine.times(
                    Timed(
                        batches=shape.batches,
                        seconds=TRY_S if first else ROUND_S,
                        multiple=shape.multiple,
                        num_streams=shape.num_streams,
                    )
                )
        best = max(asked, key=lambda shape: rate(known[(id(self.engine), shape.words)], shape))
        self.chosen = best
        self.rounds.append(of_times(known[(id(self.engine), best.words)], best))

    def cell(self) -> Cell:
        assert self.chosen is not None
        return Cell(
            scenario=self.scenario,
            load=self.load,
            server=NAME,
            figures=figures.median(self.rounds),
            rounds=tuple(self.rounds),
            shape=self.chosen.words,
        )


def limits(
    requests: Requests, loads: Iterable[Load], engine: RawEngine, *, max_items: int, num_cores: int
) -> list[Limit]:
    """One for each closed load of a scenario. max_items: the most that the engine takes at once.

    Batches are run one after another on all cores, and several at once on one core each; the faster way counts.
    """
    scenario, length = requests.scenario, requests.longest
    found = []
    for load in loads:
        if scenario.kind == "mixed":
            shapes = [*mixed_shapes(requests, max_items), *mixed_shapes(requests, max_items, num_cores)]
        else:
            at_once = load.concurrency * scenario.batch
            sizes = QUERY_BATCHES if scenario.kind == "query" else LONG_BATCHES
            shapes = [uniform(size, length) for size in sizes if size <= min(at_once, max_items)]
            at_once //= num_cores
            streams = (uniform(size, length, num_cores) for size in sizes if size <= min(at_once, max_items))
            shapes += streams if num_cores > 1 else ()
        found.append(Limit(scenario=scenario.name, load=load, engine=engine, shapes=shapes))
    return found


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


def rate(seconds: NDArray[np.float64], shape: Shape) -> float:
    """Items per second, by the median time of a pass over the batches."""
    return shape.num_streams * shape.num_items / float(np.median(seconds.sum(axis=1)))


def of_times(seconds: NDArray[np.float64], shape: Shape) -> Figures:
    """As of a server that took the batches one after another: a request is a batch."""
    passes = float(np.median(seconds.sum(axis=1))) / shape.num_streams
    return Figures(
        num_requests=seconds.size,
        requests_per_s=len(shape.batches) / passes,
        items_per_s=shape.num_items / passes,
        tokens_per_s=shape.num_tokens / passes,
        latency_s=figures.latencies(seconds.ravel()),
        statuses={},
        num_wrong=0,
        wall_s=float(seconds.sum()),
        generator_cpu_share=0.0,
        generator_us_per_request=0.0,
        lag_p99_s=0.0,
    )


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


def take_turns(found: Sequence[Limit]) -> None:
    """One round of all."""
    known: dict[tuple[int, str], NDArray[np.float64]] = {}
    for limit in found:
        limit.take_turn(known)
