"""Hours of mixed load: does memory grow, does anything go wrong?

python -m benchmarks.soak [dist/MODEL] [--minutes 60]
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time

from benchmarks.load.job import Generator
from benchmarks.report.figures import Figures
from benchmarks.report.results import Check, Table
from benchmarks.runs import experiment
from benchmarks.runs.experiment import Findings, Setup
from benchmarks.servers import processes
from benchmarks.watch.memory import MIB, MemoryWatch

SETTLE_S = 120.0  # buffers and caches reach their size
PIECE_S = 30.0
MOST_GROWTH = 32 * MIB  # in an hour
LEAST_ALLOWED = 8 * MIB  # of a run of minutes
# Taken in turn, so that shapes and sizes change all the time: scenario, requests at a time.
PIECES = (("mixed", 16), ("query-20", 15), ("mixed", 32), ("passage-300", 2))


def run(setup: Setup, minutes: float) -> Findings:
    pieces = [(setup.requests(name), concurrency) for name, concurrency in PIECES]
    settle_s = min(SETTLE_S, 15 * minutes)
    by_piece: dict[str, list[Figures]] = {}
    with processes.enginery(setup.built.folder, setup.scratch / "soak.log") as running, Generator() as generator:
        endpoint = setup.target(running.url, running.pid).endpoint
        setup.log("asking for the right answers, one text at a time")
        expected = {r.scenario.name: endpoint.expected(r) for r, _ in pieces if r.scenario.kind in ("query", "mixed")}
        until = time.monotonic() + 60 * minutes
        with MemoryWatch(running.pid, every_s=2.0) as watch:
            number = 0
            while time.monotonic() < until:
                requests, concurrency = pieces[number % len(pieces)]
                seconds = max(1.0, min(PIECE_S, until - time.monotonic()))
                figures, _ = endpoint.measure(
                    generator,
                    requests,
                    rounds_before=number,
                    seconds=seconds,
                    concurrency=concurrency,
                    expected=expected.get(requests.scenario.name),
                )
                by_piece.setdefault(f"{requests.scenario.name}, {concurrency} at a time", []).append(figures)
                number += 1
                setup.log(f"{figures.items_per_s:.0f} items/s, resident {watch.resident[-1] / MIB:.1f} MiB")
    growth, slope = watch.growth(settle_s)
    everything = [figures for runs in by_piece.values() for figures in runs]
    bad = sum(count for figures in everything for status, count in figures.statuses.items() if status != "200")
    wrong = sum(figures.num_wrong for figures in everything)
    answered = sum(figures.num_requests for figures in everything)
    allowed = max(LEAST_ALLOWED, MOST_GROWTH * min(1.0, minutes / 60))
    rows = [
        ("resident at first", f"{watch.resident[0] / MIB:.1f} MiB"),
        (f"after {settle_s:.0f} s", f"{watch.resident_at(settle_s) / MIB:.1f} MiB"),
        ("at the end", f"{watch.resident[-1] / MIB:.1f} MiB"),
        ("most", f"{max(watch.resident) / MIB:.1f} MiB"),
        ("growth since it settled", f"{growth / MIB:+.1f} MiB, {slope / MIB:+.1f} MiB per hour by a straight line"),
        ("requests answered", f"{answered:,}; {bad} not with 200; {wrong} wrong answers"),
    ]
    rows += [
        (name, f"median {statistics.median(rates):.1f} items/s, {rates[0]:.1f} at first, {rates[-1]:.1f} at the end")
        for name, rates in ((name, [figures.items_per_s for figures in runs]) for name, runs in by_piece.items())
    ]
    return Findings(
        tables=(Table(title=f"{minutes:.0f} minutes of mixed load", columns=("", ""), rows=tuple(rows)),),
        checks=(
            Check(
                name=f"memory over {minutes:.0f} minutes of mixed load",
                value=f"{growth / MIB:+.1f} MiB since it settled",
                required=f"{allowed / MIB:.0f} MiB or less ({MOST_GROWTH / MIB:.0f} MiB in an hour)",
                passed=growth <= allowed,
            ),
            Check(
                name="every answer of the soak is right",
                value=f"{bad} not answered with 200, {wrong} wrong, of {answered + bad:,}",
                required="none",
                passed=bad == 0 and wrong == 0,
            ),
        ),
    )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=60.0)
    sys.exit(experiment.main("Hours of load", lambda setup, options: run(setup, options.minutes), parser))
