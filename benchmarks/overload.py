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

from benchmarks.load.job import Arrays, Generator, Outcome
from benchmarks.report import figures
from benchmarks.report.results import Check, Table
from benchmarks.runs import experiment
from benchmarks.runs.experiment import MIB, Ground, Special, Watch
from benchmarks.servers import processes

CAPACITY_CONCURRENCY, CAPACITY_S, CAPACITY_ROUNDS = 64, 5.0, 5
SETTLE_S = 10.0  # until memory is compared: the queue has filled
LEAST_GOODPUT, MOST_REJECT_P99_S, MOST_GROWTH = 0.95, 0.05, 32 * MIB


def run(on: Ground, *, seconds: float, times: float, scenario: str) -> Special:
    requests = on.requests(scenario)
    with (
        processes.enginery(on.built.folder, on.scratch / "overload.log") as running,
        Generator() as generator,
    ):
        endpoint = on.target(running.url, running.pid).endpoint
        on.say("asking for the right answers, one text at a time")
        expected = endpoint.expected(requests)
        endpoint.measure(generator, requests, seconds=2, concurrency=CAPACITY_CONCURRENCY)  # warms up
        found = [
            endpoint.measure(generator, requests, seconds=CAPACITY_S, concurrency=CAPACITY_CONCURRENCY)[0]
            for _ in range(CAPACITY_ROUNDS)
        ]
        measured = figures.median(found)
        capacity = measured.requests_per_s
        rate = times * capacity
        on.say(f"capacity {capacity:.0f} req/s, closed loop; now {rate:.0f} req/s for {seconds:.0f} s")
        job = endpoint.job(
            requests, mode="poisson", rate=rate, seconds=seconds, concurrency=256, expected=expected, timeout_s=60
        )
        with Watch(running.pid) as watch:
            outcome = generator.run(job)
        after = figures.median(
            [
                endpoint.measure(generator, requests, seconds=CAPACITY_S, concurrency=CAPACITY_CONCURRENCY)[0]
                for _ in range(3)
            ]
        ).requests_per_s
    return judged(
        outcome,
        watch,
        scenario=scenario,
        tokens=requests.num_tokens,
        capacity=capacity,
        capacity_tokens=measured.tokens_per_s,
        rate=rate,
        seconds=seconds,
        after=after,
    )


def judged(
    outcome: Outcome,
    watch: Watch,
    *,
    scenario: str,
    tokens: Sequence[int],
    capacity: float,
    capacity_tokens: float,
    rate: float,
    seconds: float,
    after: float,
) -> Special:
    """The figures of an overloaded run. capacity, rate and after in requests per second.

    tokens: of each distinct request. Goodput is judged by tokens: to refuse the large requests gains nothing.
    """
    arrays = Arrays(outcome)
    ended = arrays.began + arrays.took
    good = arrays.status == 200
    in_time = (ended <= seconds) & good
    goodput = float(in_time.sum() / seconds)
    share = float(np.array(tokens)[arrays.which[in_time]].sum() / seconds) / capacity_tokens
    rejected = figures.latencies(arrays.took[arrays.status == 429])
    answered = figures.latencies(arrays.took[good])
    statuses = Counter(arrays.status.tolist())
    others = {status: count for status, count in statuses.items() if status not in (200, 429)}
    growth, _ = watch.growth(min(SETTLE_S, seconds / 4))
    rows = (
        ("capacity before, closed loop", f"{capacity:.0f} req/s"),
        ("sent", f"{rate:.0f} req/s for {seconds:.0f} s, {len(arrays.status):,} requests"),
        ("answered with 200", f"{statuses[200]:,}, {goodput:.0f} req/s"),
        ("answered with 429", f"{statuses[429]:,}"),
        ("answered otherwise, or not", f"{sum(others.values()):,} {dict(others) if others else ''}".strip()),
        ("latency of 200", _latency(answered)),
        ("latency of 429", _latency(rejected)),
        ("wrong or swapped vectors", f"{outcome.num_wrong:,} of {statuses[200]:,}, every one compared"),
        ("resident memory", _memory(watch, growth)),
        ("capacity after", f"{after:.0f} req/s"),
        (
            "generator",
            f"{outcome.cpu_s / max(outcome.wall_s, 1e-9):.0%} of a core; sent late by P99 {_late(arrays.lag)}",
        ),
    )
    return Special(
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
                found=f"{share:.0%} of the tokens a second at capacity",
                wanted=f"{LEAST_GOODPUT:.0%} or more",
                passed=share >= LEAST_GOODPUT,
            ),
            Check(
                name=f"overload, {scenario}: refusals",
                found=f"{statuses[429]:,} x 429: {_latency(rejected)}; others: {others or 'none'}",
                wanted=f"only 429, P99 {1e3 * MOST_REJECT_P99_S:.0f} ms or less",
                passed=not others and 0 < rejected.get("p99", 0.0) <= MOST_REJECT_P99_S,
            ),
            Check(
                name=f"overload, {scenario}: wrong or swapped vectors",
                found=str(outcome.num_wrong),
                wanted="none",
                passed=outcome.num_wrong == 0 and statuses[200] > 0,
            ),
            Check(
                name=f"overload, {scenario}: memory",
                found=f"{growth / MIB:+.1f} MiB once the queue was full",
                wanted=f"{MOST_GROWTH / MIB:.0f} MiB or less",
                passed=growth <= MOST_GROWTH,
            ),
        ),
        notes=outcome.notes if outcome.num_wrong or others else (),
    )


def _latency(found: dict[str, float]) -> str:
    if not found:
        return "none"
    return ", ".join(f"{name.upper()} {1e3 * found[name]:.1f} ms" for name in ("p50", "p90", "p99", "max"))


def _memory(watch: Watch, growth: float) -> str:
    resident = watch.resident
    first, most = resident[0] / MIB, max(resident) / MIB
    return f"{first:.0f} MiB at first, {most:.0f} MiB at most, {growth / MIB:+.1f} MiB once the queue was full"


def _late(lag: NDArray[np.float64]) -> str:
    return f"{1e3 * float(np.percentile(lag, 99)):.2f} ms" if lag.size else "–"


if __name__ == "__main__":
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--seconds", type=float, default=120.0)
    options.add_argument("--times", type=float, default=4.0)
    options.add_argument("--scenario", default="query-20")
    sys.exit(
        experiment.main_of(
            "More than it can do",
            lambda on, given: run(on, seconds=given.seconds, times=given.times, scenario=given.scenario),
            options,
        )
    )
