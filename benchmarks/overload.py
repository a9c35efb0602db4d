"""Four times as many requests as the server can answer, at random times: what it still does, and how it refuses.

python -m benchmarks.overload [dist/MODEL] [--seconds 120] [--times 4] [--scenario query-20]
"""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from benchmarks.load.job import Arrays, Generator, Recording
from benchmarks.report import figures
from benchmarks.report.results import Check, Table
from benchmarks.report.text import percentiles
from benchmarks.runs import experiment
from benchmarks.runs.experiment import Findings, Setup
from benchmarks.scenarios.scenarios import Requests
from benchmarks.servers import processes
from benchmarks.servers.endpoint import Endpoint
from benchmarks.watch.memory import MIB, MemoryWatch

CAPACITY_CONCURRENCY, CAPACITY_S, CAPACITY_ROUNDS, AFTER_ROUNDS = 64, 5.0, 5, 3
SETTLE_S = 10.0  # until memory is compared: the queue has filled
LEAST_GOODPUT, MOST_REJECT_P99_S, MOST_GROWTH = 0.95, 0.05, 32 * MIB


def run(setup: Setup, *, seconds: float, times: float, scenario: str) -> Findings:
    requests = setup.requests(scenario)
    with (
        processes.enginery(setup.built.folder, setup.scratch / "overload.log") as running,
        Generator() as generator,
    ):
        endpoint = setup.target(running.url, running.pid).endpoint
        setup.log("asking for the right answers, one text at a time")
        expected = endpoint.expected(requests)
        endpoint.measure(generator, requests, seconds=2, concurrency=CAPACITY_CONCURRENCY)  # warms up
        before = capacity_of(endpoint, generator, requests, CAPACITY_ROUNDS)
        capacity = before.requests_per_s
        rate = times * capacity
        setup.log(f"capacity {capacity:.0f} req/s, closed loop; now {rate:.0f} req/s for {seconds:.0f} s")
        job = endpoint.job(
            requests, mode="poisson", rate=rate, seconds=seconds, concurrency=256, expected=expected, timeout_s=60
        )
        with MemoryWatch(running.pid) as watch:
            recording = generator.run(job)
        after = capacity_of(endpoint, generator, requests, AFTER_ROUNDS).requests_per_s
    return judged(
        recording,
        watch,
        scenario=scenario,
        tokens=requests.num_tokens,
        capacity=capacity,
        capacity_tokens=before.tokens_per_s,
        rate=rate,
        seconds=seconds,
        after=after,
    )


def capacity_of(endpoint: Endpoint, generator: Generator, requests: Requests, rounds: int) -> figures.Figures:
    """What a closed loop reaches, medians."""
    runs = (
        endpoint.measure(generator, requests, seconds=CAPACITY_S, concurrency=CAPACITY_CONCURRENCY)
        for _ in range(rounds)
    )
    return figures.median([of_run for of_run, _ in runs])


def judged(
    recording: Recording,
    watch: MemoryWatch,
    *,
    scenario: str,
    tokens: Sequence[int],
    capacity: float,
    capacity_tokens: float,
    rate: float,
    seconds: float,
    after: float,
) -> Findings:
    """The figures of an overloaded run. capacity, rate and after in requests per second.

    tokens: of each distinct request. Goodput is judged by tokens: to refuse the large requests gains nothing.
    """
    arrays = Arrays(recording)
    ended = arrays.due_s + arrays.latency_s
    good = arrays.status == 200
    in_time = (ended <= seconds) & good
    goodput = float(in_time.sum() / seconds)
    share = float(np.array(tokens)[arrays.request[in_time]].sum() / seconds) / capacity_tokens
    rejected = figures.latencies(arrays.latency_s[arrays.status == 429])
    answered = figures.latencies(arrays.latency_s[good])
    statuses = Counter(arrays.status.tolist())
    others = {status: count for status, count in statuses.items() if status not in (200, 429)}
    growth, _ = watch.growth(min(SETTLE_S, seconds / 4))
    rows = (
        ("capacity before, closed loop", f"{capacity:.0f} req/s"),
        ("sent", f"{rate:.0f} req/s for {seconds:.0f} s, {len(arrays.status):,} requests"),
        ("answered with 200", f"{statuses[200]:,}, {goodput:.0f} req/s"),
        ("answered with 429", f"{statuses[429]:,}"),
        ("answered otherwise, or not", f"{sum(others.values()):,} {dict(others) if others else ''}".strip()),
        ("latency of 200", percentiles(answered)),
        ("latency of 429", percentiles(rejected)),
        ("wrong or swapped vectors", f"{recording.num_wrong:,} of {statuses[200]:,}, every one compared"),
        ("resident memory", _memory(watch, growth)),
        ("capacity after", f"{after:.0f} req/s"),
        (
            "generator",
            f"{recording.cpu_s / max(recording.wall_s, 1e-9):.0%} of a core; sent late by P99 {_late(arrays.lag_s)}",
        ),
    )
    return Findings(
        tables=(
            Table(
                title=f"Open load of {scenario} at {rate / capacity:.1f} times the capacity",
                columns=("", ""),
                rows=rows,
                note="Latency counts from when a request was due. Capacity is measured by the same generator.",
            ),
        ),
        checks=(
            Check(
                name=f"overload, {scenario}: goodput",
                value=f"{share:.0%} of the tokens a second at capacity",
                required=f"{LEAST_GOODPUT:.0%} or more",
                passed=share >= LEAST_GOODPUT,
            ),
            Check(
                name=f"overload, {scenario}: refusals",
                value=f"{statuses[429]:,} x 429: {percentiles(rejected)}; others: {others or 'none'}",
                required=f"only 429, P99 {1e3 * MOST_REJECT_P99_S:.0f} ms or less",
                passed=not others and 0 < rejected.get("p99", 0.0) <= MOST_REJECT_P99_S,
            ),
            Check(
                name=f"overload, {scenario}: wrong or swapped vectors",
                value=str(recording.num_wrong),
                required="none",
                passed=recording.num_wrong == 0 and statuses[200] > 0,
            ),
            Check(
                name=f"overload, {scenario}: memory",
                value=f"{growth / MIB:+.1f} MiB once the queue was full",
                required=f"{MOST_GROWTH / MIB:.0f} MiB or less",
                passed=growth <= MOST_GROWTH,
            ),
        ),
        notes=recording.notes if recording.num_wrong or others else (),
    )


def _memory(watch: MemoryWatch, growth: float) -> str:
    resident = watch.resident
    first, most = resident[0] / MIB, max(resident) / MIB
    return f"{first:.0f} MiB at first, {most:.0f} MiB at most, {growth / MIB:+.1f} MiB once the queue was full"


def _late(lag_s: NDArray[np.float64]) -> str:
    return f"{1e3 * float(np.percentile(lag_s, 99)):.2f} ms" if lag_s.size else "–"


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=120.0)
    parser.add_argument("--times", type=float, default=4.0)
    parser.add_argument("--scenario", default="query-20")
    sys.exit(
        experiment.main(
            "More than it can do",
            lambda setup, options: run(setup, seconds=options.seconds, times=options.times, scenario=options.scenario),
            parser,
        )
    )
