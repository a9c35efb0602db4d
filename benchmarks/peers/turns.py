"""Round by round: every server in turn, then the engine alone, so that what slows the machine slows all of them."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import msgspec

from benchmarks.limits import limit, shapes
from benchmarks.limits.limit import Limit
from benchmarks.load.job import Generator
from benchmarks.peers import goals
from benchmarks.peers.fleet import OURS, Fleet
from benchmarks.peers.goals import Beside, Same
from benchmarks.report import bounds
from benchmarks.report.results import Cell, Load, Table
from benchmarks.runs import suite
from benchmarks.runs.suite import Log, Measurement, Target
from benchmarks.scenarios.scenarios import Requests
from benchmarks.servers import processes
from benchmarks.servers.endpoint import Endpoint

SECONDS = {"query": 2.5, "passage": 2.0, "mixed": 4.0, "rerank": 1.5}
SHORT_SECONDS = {"query": 1.5, "passage": 1.5, "mixed": 3.0, "rerank": 1.5}
SHORT_LOADS = {"query-20": (1, 7), "passage-300": (1, 3), "mixed": (32,), "rerank-20": (1,)}
OPEN_SCENARIOS, OPEN_SHARES, OPEN_ROUNDS, OPEN_S = ("query-20", "mixed"), (0.5, 0.8), 2, 3.0
SAME_ROUNDS = 3
OTHER_ROUNDS = 2  # of loads that no goal is about: half an hour is what all of it may take


def closed_loads(requests: Requests, *, short: bool) -> list[Load]:
    scenario = requests.scenario
    return [Load(concurrency=n) for n in (SHORT_LOADS.get(scenario.name, ()) if short else scenario.concurrency)]


def take(
    fleet: Fleet,
    all_requests: Sequence[Requests],
    chosen: Mapping[str, str],
    generator: Generator,
    log: Log,
    *,
    rounds: int,
    short: bool,
) -> tuple[list[Cell], list[str]]:
    """All cells, and what went wrong. chosen: kind of load -> the peer's engine."""
    measurements: list[Measurement] = []
    limits: list[Limit] = []
    for requests in all_requests:
        kind, built = requests.scenario.kind, fleet.built(requests)
        targets = [fleet.ours(built), *([fleet.peer(chosen[kind], built)] if kind in chosen else [])]
        seconds = (SHORT_SECONDS if short else SECONDS)[kind]
        for target in targets:  # kernels for the scenario's shapes are prepared before the first round counts
            warm_up = Measurement(target=target, requests=requests, load=Load(concurrency=2), seconds=1)
            suite.measure(generator, warm_up, 3)
        loads = closed_loads(requests, short=short)
        measurements += [
            Measurement(
                target=target,
                requests=requests,
                load=load,
                seconds=seconds,
                num_requests=suite.fixed(requests),
                rounds=0 if short or (requests.scenario.name, load.concurrency) in goals.LOADS else OTHER_ROUNDS,
            )
            for load in loads
            for target in targets
        ]
        limits += limit.of_scenario(
            requests, loads, fleet.engines[built.name], max_items=built.max_batch, num_cores=os.cpu_count() or 1
        )
    cells, notes = suite.run(
        measurements, rounds=rounds, log=log, between=lambda _: limit.take_turns(limits), generator=generator
    )
    if not short:
        open_measurements = open_loads(all_requests, cells, measurements)
        more_cells, more_notes = suite.run(open_measurements, rounds=OPEN_ROUNDS, log=log, generator=generator)
        cells, notes = cells + more_cells, notes + more_notes
    return [*cells, *(one.cell() for one in limits)], notes


def open_loads(
    all_requests: Sequence[Requests], cells: Sequence[Cell], closed: Sequence[Measurement]
) -> list[Measurement]:
    """Random arrivals at shares of what each server reached, and for this one at the peer's rates too."""
    measurements: list[Measurement] = []
    for requests in all_requests:
        name = requests.scenario.name
        if name not in OPEN_SCENARIOS:
            continue
        targets = {one.target.name: one.target for one in closed if one.requests.scenario.name == name}
        rates: dict[str, set[float]] = {}
        for server in targets:
            most = max(c.figures.requests_per_s for c in cells if (c.scenario, c.server) == (name, server))
            rates[server] = {float(f"{share * most:.2g}") for share in OPEN_SHARES}
        rates[OURS] |= set().union(*rates.values())
        measurements += [
            Measurement(target=targets[server], requests=requests, load=Load(mode="open", rate=rate), seconds=OPEN_S)
            for server in targets
            for rate in sorted(rates[server])
        ]
    return measurements


def same_batches(fleet: Fleet, all_requests: Sequence[Requests], cells: Sequence[Cell]) -> Same:
    """The engine alone with the batches that the server ran under the goals' loads, where its metrics tell them."""
    by_name = {requests.scenario.name: requests for requests in all_requests}
    same: Same = {}
    for cell in cells:
        requests = by_name[cell.scenario]
        built = fleet.built(requests)
        shape = shapes.same_batch(cell, requests, max_items=built.max_batch)
        if cell.server != OURS or shape is None or (cell.scenario, cell.load.concurrency) not in goals.LOADS:
            continue
        engine = fleet.engines[built.name]
        alone = Limit(scenario=cell.scenario, load=cell.load, engine=engine, shapes=[shape])
        for _ in range(SAME_ROUNDS):
            alone.take_turn({})
        same[cell.scenario, cell.load] = Beside(ours=cell, alone=alone.cell())
    return same


def own_batches(
    fleet: Fleet, requests: Requests, load: Load, generator: Generator, *, logs: Path, cache: Path
) -> Beside:
    """A server that logs its batches, and in turn with it the engine alone with these very batches."""
    built, log = fleet.built(requests), logs / "batches.log"
    seconds = SECONDS[requests.scenario.kind]
    with processes.enginery(built.folder, log, cache=cache, level="DEBUG") as running:
        target = Target(name=OURS, endpoint=Endpoint(url=running.url, model=built.name), pid=running.pid)
        measurement = Measurement(
            target=target, requests=requests, load=load, seconds=seconds, num_requests=suite.fixed(requests)
        )
        suite.measure(generator, measurement, SAME_ROUNDS)  # kernels are prepared
        rounds: list[suite.Round] = []
        alone = Limit(scenario=requests.scenario.name, load=load, engine=fleet.engines[built.name], shapes=())
        for number in range(SAME_ROUNDS):
            written = log.stat().st_size
            rounds.append(suite.measure(generator, measurement, number))
            streams = round(rounds[-1].inside.engine_streams or 1)
            alone.best = shapes.batches_of(log.read_bytes()[written:].decode(), streams)
            alone.take_turn({})
    return Beside(ours=suite.cell(measurement, rounds), alone=alone.cell())


def with_bounds(cells: Sequence[Cell], same: Same) -> list[Cell]:
    """The cells; ours say what bounds them."""
    alone = {(cell.scenario, cell.load): cell for cell in cells if cell.server == limit.NAME}

    def bound(cell: Cell) -> str:
        place = (cell.scenario, cell.load)
        beside = same.get(place)
        return bounds.bound(cell, alone.get(place), beside.alone if beside is not None else None)

    return [msgspec.structs.replace(cell, bound=bound(cell)) if cell.server == OURS else cell for cell in cells]


def same_table(same: Same) -> Table:
    rows = []
    for (scenario, load), beside in same.items():
        ours, alone = beside.ours.figures.items_per_s, beside.alone.figures.items_per_s
        rows.append((scenario, load.words, beside.alone.shape, f"{ours:.1f}", f"{alone:.1f}", f"{ours / alone:.0%}"))
    return Table(
        title="Over HTTP and the engine alone, with the same batches",
        columns=("scenario", "load", "batches", "items/s over HTTP", "items/s alone", "share"),
        rows=tuple(rows),
        note="Batches of the mean size that the server's metrics tell, of the scenario's length, not padded; for mixed "
        "texts the very batches that a server logged, padding included, in turn with it.",
    )
