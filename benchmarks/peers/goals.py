"""What the project asks of itself, checked against one run's figures: ratios to the peer and to the engine."""

from __future__ import annotations

from typing import NamedTuple

from benchmarks.report.results import Cell, Check, Load, Results
from benchmarks.report.text import milliseconds

TIMES_THE_PEER = 3.0
OF_THE_ENGINE = 0.9
# scenario, concurrency
AGAINST_PEER = (
    ("query-20", 1),
    ("query-20", 7),
    ("passage-300", 1),
    ("passage-300", 3),
    ("mixed", 32),
    ("rerank-10", 1),
    ("rerank-20", 1),
    ("rerank-20", 3),
    ("rerank-40", 1),
)
AT_SATURATION = (("query-20", 15), ("passage-300", 5), ("passage-512", 5), ("rerank-20", 5), ("mixed", 32))
QUERY_FACTOR, QUERY_EXTRA_S = 1.3, 0.001
LOADS = frozenset(AGAINST_PEER + AT_SATURATION)  # these go through all rounds


class Beside(NamedTuple):
    """The server, and the engine alone with the batches that the server ran."""

    ours: Cell
    alone: Cell


Same = dict[tuple[str, Load], Beside]


def checks(results: Results, ours: str, same: Same) -> list[Check]:
    """What was not measured is not judged."""
    judged: list[Check] = []
    for scenario, concurrency in AGAINST_PEER:
        load = Load(concurrency=concurrency)
        cell, peer = results.cell(scenario, load, ours), results.peer_of(scenario, load)
        if cell is not None and peer is not None:
            judged += against_peer(cell, peer)
    for scenario, concurrency in AT_SATURATION:
        load = Load(concurrency=concurrency)
        beside = same.get((scenario, load))
        cell = beside.ours if beside is not None else results.cell(scenario, load, ours)
        limit = beside.alone if beside is not None else results.limit_of(scenario, load)
        if cell is not None and limit is not None:
            judged.append(against_engine(cell, limit))
    alone = Load(concurrency=1)
    cell, limit = results.cell("query-20", alone, ours), results.limit_of("query-20", alone)
    if cell is not None and limit is not None:
        judged.append(one_query(cell, limit))
    return judged


def against_peer(cell: Cell, peer: Cell) -> list[Check]:
    ratio = cell.figures.items_per_s / peer.figures.items_per_s
    where = f"{cell.scenario}, {cell.load.words}"
    p99, theirs = cell.figures.latency_s["p99"], peer.figures.latency_s["p99"]
    return [
        Check(
            name=f"{where}: items/s against the best peer ({peer.server})",
            value=f"{ratio:.2f} x ({cell.figures.items_per_s:.1f} and {peer.figures.items_per_s:.1f})",
            required=f"{TIMES_THE_PEER:.0f} x or more",
            passed=ratio >= TIMES_THE_PEER,
        ),
        Check(
            name=f"{where}: P99 against the best peer ({peer.server})",
            value=f"{milliseconds(p99)} and {milliseconds(theirs)}",
            required="no worse",
            passed=p99 <= theirs,
        ),
    ]


def against_engine(cell: Cell, limit: Cell) -> Check:
    share = cell.figures.items_per_s / limit.figures.items_per_s
    return Check(
        name=f"{cell.scenario}, {cell.load.words}: items/s over HTTP against the engine alone ({limit.shape})",
        value=f"{share:.0%} ({cell.figures.items_per_s:.1f} of {limit.figures.items_per_s:.1f})",
        required=f"{OF_THE_ENGINE:.0%} or more",
        passed=share >= OF_THE_ENGINE,
    )


def one_query(cell: Cell, limit: Cell) -> Check:
    call, p50 = limit.figures.latency_s["p50"], cell.figures.latency_s["p50"]
    allowed = QUERY_FACTOR * call + QUERY_EXTRA_S
    return Check(
        name="one query alone: P50 over HTTP against the engine's call",
        value=f"{milliseconds(p50)} and {milliseconds(call)}",
        required=f"{QUERY_FACTOR} x the call + 1 ms = {milliseconds(allowed)}, or less",
        passed=p50 <= allowed,
    )


def at_start(ready_s: float, resident_bytes: float) -> list[Check]:
    mb = resident_bytes / 1e6
    return [
        Check(
            name="ready after the start of the process",
            value=f"{ready_s:.2f} s",
            required="2.5 s or less",
            passed=ready_s <= 2.5,
        ),
        Check(name="resident memory at rest", value=f"{mb:.0f} MB", required="400 MB or less", passed=mb <= 400),
    ]
