"""The limit: the fastest of a scenario's shapes, timed on the engine alone in every round."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from benchmarks.limits.raw_engine import RawEngine, Timed
from benchmarks.limits.shapes import Shape, mixed_shapes, uniform
from benchmarks.report import figures
from benchmarks.report.figures import Figures
from benchmarks.report.results import Cell, Load
from benchmarks.scenarios.scenarios import Requests

NAME = "engine alone"
QUERY_BATCHES = (1, 2, 3, 4, 6, 8, 11, 15)
LONG_BATCHES = (1, 4, 8, 13, 16, 32)
TRY_S, ROUND_S = 0.25, 0.5
Times = dict[tuple[int, str], NDArray[np.float64]]  # engine and shape -> (passes, batches) seconds


@dataclass(kw_only=True)
class Limit:
    """One scenario's limit under one load, as rounds go by."""

    scenario: str
    load: Load
    engine: RawEngine
    shapes: Sequence[Shape]
    best: Shape | None = None  # of the first round
    rounds: list[Figures] = field(default_factory=list)

    def take_turn(self, times: Times) -> None:
        """times: of this round so far; loads share their shapes."""
        first = self.best is None
        shapes = self.shapes if self.best is None else [self.best]
        for shape in shapes:
            key = (id(self.engine), shape.words)
            if key not in times:
                times[key] = self.engine.times(
                    Timed(
                        batches=shape.batches,
                        seconds=TRY_S if first else ROUND_S,
                        multiple=shape.multiple,
                        num_streams=shape.num_streams,
                    )
                )
        best = max(shapes, key=lambda shape: rate(times[id(self.engine), shape.words], shape))
        self.best = best
        self.rounds.append(of_times(times[id(self.engine), best.words], best))

    def cell(self) -> Cell:
        assert self.best is not None
        return Cell(
            scenario=self.scenario,
            load=self.load,
            server=NAME,
            figures=figures.median(self.rounds),
            rounds=tuple(self.rounds),
            shape=self.best.words,
        )


def of_scenario(
    requests: Requests, loads: Iterable[Load], engine: RawEngine, *, max_items: int, num_cores: int
) -> list[Limit]:
    """One for each closed load of a scenario. max_items: the most that the engine takes at once.

    Batches are run one after another on all cores, and several at once on one core each; the faster way counts.
    """
    scenario, length = requests.scenario, requests.longest
    per_load = []
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
        per_load.append(Limit(scenario=scenario.name, load=load, engine=engine, shapes=shapes))
    return per_load


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


def take_turns(limits: Sequence[Limit]) -> None:
    """One round of all."""
    times: Times = {}
    for limit in limits:
        limit.take_turn(times)
