"""How much of the engine's work is padding under a mixed stream, and whether long texts starve short ones.

python -m benchmarks.padding [dist/MODEL] [--seconds 20]
"""

from __future__ import annotations

import argparse
import sys
import threading
from collections.abc import Sequence

from benchmarks.load.job import Arrays, Generator, Recording
from benchmarks.report.figures import of_run
from benchmarks.report.results import Check, Table
from benchmarks.report.text import percentiles
from benchmarks.runs import experiment
from benchmarks.runs.experiment import Findings, Setup
from benchmarks.runs.suite import Target
from benchmarks.scenarios.scenarios import Requests
from benchmarks.servers import processes
from benchmarks.watch import scrape
from benchmarks.watch.scrape import Inside

CONCURRENCY = 32
MOST_WASTE = 0.15
LONG_CONCURRENCY, QUERY_RATE = 3, 20.0
TIMES_A_BATCH = 3.0


def run(setup: Setup, seconds: float) -> Findings:
    with processes.enginery(setup.built.folder, setup.scratch / "padding.log") as running:
        target = setup.target(running.url, running.pid)
        stream = padding(setup, target, seconds)
        starved = starvation(setup, target, seconds)
    return Findings(tables=stream.tables + starved.tables, checks=stream.checks + starved.checks)


def padding(setup: Setup, target: Target, seconds: float) -> Findings:
    """The mixed stream at saturation, and what a plain FIFO would pad of the same items in the same order."""
    requests = setup.requests("mixed")
    with Generator() as generator:
        target.endpoint.measure(generator, requests, seconds=3, concurrency=CONCURRENCY)  # warms up
        inside, recording = inside_of(generator, target, requests, seconds=seconds, concurrency=CONCURRENCY)
    figures = of_run(recording, requests)
    sent = Arrays(recording).request.tolist()
    real = sum(requests.num_tokens[request] for request in sent)
    num_batches = sum(requests.num_items[request] for request in sent) / (inside.batch_items or 1.0)
    padded = (inside.batch_tokens or 0.0) * num_batches / max(1e-9, 1 - (inside.padding_waste or 0.0))
    waste = 1 - real / padded if padded else float("nan")
    lengths = [length for request in sorted(set(sent)) for length in lengths_of(requests, request)]
    size = max(1, round(inside.batch_items or 1))
    fifo, packed = fifo_waste(lengths, size), fifo_waste(sorted(lengths), size)
    rows = (
        ("this server: padded share of what the engine ran", f"{waste:.1%}"),
        ("as its metrics tell (padding_waste_ratio)", f"{inside.padding_waste or 0:.1%}"),
        (f"a plain FIFO, batches of {size} in order of arrival", f"{fifo:.1%}"),
        (f"all items known and sorted, batches of {size}", f"{packed:.1%}"),
        ("mean batch", f"{inside.batch_items or 0:.1f} items, {inside.batch_tokens or 0:.0f} tokens"),
        ("throughput", f"{figures.items_per_s:.1f} items/s, {figures.tokens_per_s:.0f} tokens/s"),
        ("engine busy", f"{inside.engine_busy or 0:.0%}"),
    )
    return Findings(
        tables=(
            Table(
                title=f"Padding: the mixed stream, {CONCURRENCY} requests at a time",
                columns=("", ""),
                rows=rows,
                note="Texts of 5 to 512 tokens (log-normal), 1 to 8 in a request. Widths that the server rounds up are "
                "padding in the first line; the FIFO rounds nothing.",
            ),
        ),
        checks=(
            Check(
                name="padding of the mixed stream at saturation",
                value=f"{waste:.1%} (a plain FIFO: {fifo:.1%})",
                required=f"{MOST_WASTE:.0%} or less",
                passed=bool(waste <= MOST_WASTE),
            ),
        ),
    )


def starvation(setup: Setup, target: Target, seconds: float) -> Findings:
    """Short queries at a low rate, alone and beside requests of 64 texts of 512 tokens."""
    long, short = setup.requests("passage-512"), setup.requests("query-20")
    with Generator() as first, Generator() as second:
        target.endpoint.measure(first, long, seconds=1, concurrency=1, min_requests=1)  # warms up
        alone = of_run(query_load(second, target, short, seconds / 2), short).latency_s
        passages, only_long = inside_of(first, target, long, seconds=seconds / 2, concurrency=LONG_CONCURRENCY)
        results: list[tuple[Inside, Recording]] = []
        streaming = threading.Thread(
            target=lambda: results.append(
                inside_of(first, target, long, seconds=seconds + 3, concurrency=LONG_CONCURRENCY)
            )
        )
        streaming.start()
        threading.Event().wait(1.5)  # the queue is full of passages
        beside = of_run(query_load(second, target, short, seconds), short).latency_s
        streaming.join()
    _, both = results[0]
    of_long, of_both = (of_run(recording, long).items_per_s for recording in (only_long, both))
    batch = passages.engine_s or 0.0
    rows = (
        ("queries alone", percentiles(alone)),
        ("queries while passages stream", percentiles(beside)),
        ("one batch of passages", f"{1e3 * batch:.1f} ms on average"),
        ("passages alone and beside the queries", f"{of_long:.1f} and {of_both:.1f} items/s"),
    )
    ratio = beside["p99"] / batch if batch else float("inf")
    return Findings(
        tables=(
            Table(
                title=f"Starvation: {QUERY_RATE:.0f} queries/s beside {LONG_CONCURRENCY} x 64 texts of 512 tokens",
                columns=("", ""),
                rows=rows,
                note="Open load of queries: their latency counts from when they were due.",
            ),
        ),
        checks=(
            Check(
                name="P99 of short queries while 512-token passages stream",
                value=f"{1e3 * beside['p99']:.0f} ms, {ratio:.1f} batches",
                required=f"{TIMES_A_BATCH:.0f} times one batch ({1e3 * batch:.0f} ms) or less",
                passed=ratio <= TIMES_A_BATCH,
            ),
        ),
    )


def inside_of(
    generator: Generator, target: Target, requests: Requests, *, seconds: float, concurrency: int
) -> tuple[Inside, Recording]:
    """A closed load, and what the server's metrics say of it."""
    before = target.endpoint.metrics()
    _, recording = target.endpoint.measure(generator, requests, seconds=seconds, concurrency=concurrency)
    return scrape.between(before, target.endpoint.metrics(), recording.wall_s, {}), recording


def query_load(generator: Generator, target: Target, requests: Requests, seconds: float) -> Recording:
    _, recording = target.endpoint.measure(
        generator, requests, mode="poisson", rate=QUERY_RATE, seconds=seconds, concurrency=8
    )
    return recording


def lengths_of(requests: Requests, request: int) -> Sequence[int]:
    start = sum(requests.num_items[:request])
    return requests.lengths[start : start + requests.num_items[request]]


def fifo_waste(lengths: Sequence[int], size: int) -> float:
    """The padded share when items are cut into batches of `size` in the order given."""
    batches = [lengths[n : n + size] for n in range(0, len(lengths), size)]
    padded = sum(len(batch) * max(batch) for batch in batches)
    return 1 - sum(lengths) / padded if padded else 0.0


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=20.0)
    sys.exit(experiment.main("Padding and starvation", lambda setup, options: run(setup, options.seconds), parser))
