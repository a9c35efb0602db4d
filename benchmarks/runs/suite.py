"""Run scenarios against one server or several in turn, round by round, and gather each cell's medians."""

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

Say = Callable[[str], None]
MIXED_REQUESTS = 96


@dataclass(frozen=True, kw_only=True)
class Target:
    """A server under measurement."""

    name: str
    endpoint: Endpoint
    pid: int | None = None  # where it runs on this machine: its threads are watched
    expected: Mapping[str, Expected] | None = None  # scenario -> the right answers; given: every answer is compared


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """One cell to measure, round after round."""

    target: Target
    requests: Requests
    load: Load
    seconds: float  # at least; a closed load goes on until each connection was answered once
    num_requests: int = 0  # closed: exactly so many instead, so that all servers do the same work
    rounds: int = 0  # in how many it takes part, the first ones; 0: in all


def fixed(requests: Requests) -> int:
    """How many requests a round of a closed load sends; 0: as many as its time allows.

    Requests of a mixed stream differ much: servers that got through more of them would not have done the same.
    """
    return MIXED_REQUESTS if requests.scenario.kind == "mixed" else 0


@dataclass(kw_only=True)
class Round:
    """What one round of a cell gave."""

    figures: Figures
    inside: Inside
    notes: tuple[str, ...]


def measure(generator: Generator, wanted: Wanted, number: int) -> Round:
    """One round of one cell. Raises EngineryError when the server cannot be reached."""
    target, load = wanted.target, wanted.load
    expected = target.expected.get(wanted.requests.scenario.name) if target.expected else None
    before, threads_before = scrape.read(target.endpoint.url), _threads(target.pid)
    started = time.monotonic()
    found, outcome = target.endpoint.measure(
        generator,
        wanted.requests,
        rounds_before=number,
        mode="closed" if load.mode == "closed" else "poisson",
        concurrency=load.concurrency if load.mode == "closed" else 16,
        rate=load.rate,
        seconds=0.0 if wanted.num_requests else wanted.seconds,
        min_requests=wanted.num_requests or load.concurrency,
        max_requests=wanted.num_requests,
        seed=number,
        expected=expected,
    )
    wall_s = time.monotonic() - started
    cpu = procfs.shares(target.pid, threads_before, _threads(target.pid), wall_s) if target.pid else {}
    after = scrape.read(target.endpoint.url)
    return Round(figures=found, inside=scrape.between(before, after, outcome.wall_s, cpu), notes=outcome.notes)


def run(
    wanted: Sequence[Wanted],
    *,
    rounds: int,
    say: Say,
    between: Callable[[int], None] | None = None,
    generator: Generator | None = None,
) -> tuple[list[Cell], list[str]]:
    """Every cell once per round, in the order given, so that servers take turns: the cells, and what went wrong.

    between: called in each round, for what else takes its turn.
    """
    found: list[list[Round]] = [[] for _ in wanted]
    notes: dict[str, None] = {}  # in order, each once
    with nullcontext(generator) if generator is not None else Generator() as own:
        for number in range(rounds):
            for entry, rounds_found in zip(wanted, found, strict=True):
                if entry.rounds and number >= entry.rounds:
                    continue
                said = measure(own, entry, number)
                rounds_found.append(said)
                where = f"{entry.target.name}, {entry.requests.scenario.name}, {entry.load.words}"
                say(f"round {number + 1}: {where}: {said.figures.items_per_s:.1f} items/s")
                notes.update({f"{where}: {note}": None for note in said.notes})
            if between is not None:
                between(number)
    cells = [
        Cell(
            scenario=entry.requests.scenario.name,
            load=entry.load,
            server=entry.target.name,
            figures=figures.median([one.figures for one in rounds_found]),
            rounds=tuple(one.figures for one in rounds_found),
            inside=scrape.median([one.inside for one in rounds_found]),
        )
        for entry, rounds_found in zip(wanted, found, strict=True)
    ]
    return cells, list(notes)


def _threads(pid: int | None) -> dict[int, tuple[str, float]]:
    if pid is not None:
        with suppress(OSError):
            return procfs.threads(pid)
    return {}
