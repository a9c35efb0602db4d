"""Measure cells, of one server or of several in turn, round by round, and gather each cell's medians."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext, suppress
from dataclasses import dataclass

from benchmarks.load.job import Expected, Generator
from benchmarks.report import figures
from benchmarks.report.figures import Figures
from benchmarks.report.results import Cell, Load
from benchmarks.scenarios.scenarios import Requests
from benchmarks.servers.endpoint import Endpoint
from benchmarks.watch import procfs, scrape
from benchmarks.watch.scrape import Inside

Log = Callable[[str], None]  # tells a person what is measured
MIXED_REQUESTS = 96


@dataclass(frozen=True, kw_only=True)
class Target:
    """A server under measurement."""

    name: str
    endpoint: Endpoint
    pid: int | None = None  # where it runs on this machine: its threads are watched
    expected: Mapping[str, Expected] | None = None  # scenario -> the right answers; given: every answer is compared


@dataclass(frozen=True, kw_only=True)
class Measurement:
    """One cell to measure, round after round."""

    target: Target
    requests: Requests
    load: Load
    seconds: float  # at least; a closed load goes on until each connection was answered once
    num_requests: int = 0  # closed: exactly so many instead, so that all servers do the same work
    rounds: int = 0  # in how many it takes part, the first ones; 0: in all

    def __str__(self) -> str:
        return f"{self.target.name}, {self.requests.scenario.name}, {self.load.words}"


def fixed(requests: Requests) -> int:
    """How many requests a round of a closed load sends; 0: as many as its time allows.

    Requests of a mixed stream differ much: servers that got through more of them would not have done the same.
    """
    return MIXED_REQUESTS if requests.scenario.kind == "mixed" else 0


@dataclass(frozen=True, kw_only=True)
class Round:
    """What one round of a measurement gave."""

    figures: Figures
    inside: Inside
    notes: tuple[str, ...]


def measure(generator: Generator, measurement: Measurement, number: int) -> Round:
    """One round of one cell. Raises EngineryError when the server cannot be reached."""
    target, load = measurement.target, measurement.load
    expected = target.expected.get(measurement.requests.scenario.name) if target.expected else None
    before, threads_before = target.endpoint.metrics(), _threads(target.pid)
    start = time.monotonic()
    of_run, recording = target.endpoint.measure(
        generator,
        measurement.requests,
        rounds_before=number,
        mode="closed" if load.mode == "closed" else "poisson",
        concurrency=load.concurrency if load.mode == "closed" else 16,
        rate=load.rate,
        seconds=0.0 if measurement.num_requests else measurement.seconds,
        min_requests=measurement.num_requests or load.concurrency,
        max_requests=measurement.num_requests,
        seed=number,
        expected=expected,
    )
    wall_s = time.monotonic() - start
    cpu = procfs.shares(target.pid, threads_before, _threads(target.pid), wall_s) if target.pid else {}
    inside = scrape.between(before, target.endpoint.metrics(), recording.wall_s, cpu)
    return Round(figures=of_run, inside=inside, notes=recording.notes)


def run(
    measurements: Sequence[Measurement],
    *,
    rounds: int,
    log: Log,
    between: Callable[[int], None] | None = None,
    generator: Generator | None = None,
) -> tuple[list[Cell], list[str]]:
    """Every cell once per round, in the order given, so that servers take turns: the cells, and what went wrong.

    between: called in each round, for what else takes its turn.
    """
    by_measurement: list[list[Round]] = [[] for _ in measurements]
    notes: dict[str, None] = {}  # in order, each once
    with nullcontext(generator) if generator is not None else Generator() as own:
        for number in range(rounds):
            for measurement, its_rounds in zip(measurements, by_measurement, strict=True):
                if measurement.rounds and number >= measurement.rounds:
                    continue
                one = measure(own, measurement, number)
                its_rounds.append(one)
                log(f"round {number + 1}: {measurement}: {one.figures.items_per_s:.1f} items/s")
                notes.update({f"{measurement}: {note}": None for note in one.notes})
            if between is not None:
                between(number)
    pairs = zip(measurements, by_measurement, strict=True)
    return [cell(measurement, its_rounds) for measurement, its_rounds in pairs], list(notes)


def cell(measurement: Measurement, rounds: Sequence[Round]) -> Cell:
    """The medians of its rounds."""
    of_rounds = tuple(one.figures for one in rounds)
    return Cell(
        scenario=measurement.requests.scenario.name,
        load=measurement.load,
        server=measurement.target.name,
        figures=figures.median(of_rounds),
        rounds=of_rounds,
        inside=scrape.median([one.inside for one in rounds]),
    )


def _threads(pid: int | None) -> dict[int, tuple[str, float]]:
    if pid is not None:
        with suppress(OSError):
            return procfs.threads(pid)
    return {}
