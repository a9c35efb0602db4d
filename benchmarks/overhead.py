"""What the server itself costs: single queries against an engine that costs nothing, answers in base64.

python -m benchmarks.overhead [dist/MODEL] [--rounds 5]
"""

from __future__ import annotations

import argparse
import sys

from benchmarks.load.job import Generator
from benchmarks.report.results import Cell, Check, Load, Table
from benchmarks.runs import experiment, suite
from benchmarks.runs.experiment import Findings, Setup
from benchmarks.runs.suite import Measurement
from benchmarks.servers import processes

CONCURRENCY = (1, 8, 16, 32, 64)
LEAST_RATE = 5000  # req/s
ROUND_S = 2.0


def run(setup: Setup, rounds: int) -> Findings:
    requests = setup.requests("query-20")
    root = setup.built.folder / "rootfs"
    environment = processes.serving_environment(setup.built.folder, 0)
    del environment["NIM_HTTP_API_PORT"]  # it takes the port as an argument
    environment["NIM_CACHE_PATH"] = str((setup.scratch / "cache-null").absolute())
    server, log_path = "benchmarks.servers.null_server", setup.scratch / "null.log"
    with (
        processes.module(server, [str(root), "PORT"], "/v1/health/ready", log_path, environment) as running,
        Generator() as generator,
    ):
        target = setup.target(running.url, running.pid)
        warm_up = Measurement(target=target, requests=requests, load=Load(concurrency=32), seconds=2)
        suite.measure(generator, warm_up, 0)
        measurements = [
            Measurement(target=target, requests=requests, load=Load(concurrency=n), seconds=ROUND_S)
            for n in CONCURRENCY
        ]
        cells, notes = suite.run(measurements, rounds=rounds, log=setup.log, generator=generator)
    fastest = max(cells, key=lambda cell: cell.figures.requests_per_s)
    return Findings(
        tables=(
            Table(
                title="One query per request, with an engine that costs nothing",
                columns=("", "req/s", "P50 ms", "P99 ms", "server µs/request", "server's threads", "generator"),
                rows=tuple(row(cell) for cell in cells),
                note="Tokenising, batching, HTTP and JSON are the server's own. Shares are of one core.",
            ),
        ),
        checks=(
            Check(
                name="single queries per second with an engine that costs nothing",
                value=f"{fastest.figures.requests_per_s:,.0f} ({fastest.load.words})",
                required=f"{LEAST_RATE:,} or more",
                passed=fastest.figures.requests_per_s >= LEAST_RATE,
            ),
        ),
        notes=tuple(notes),
    )


def row(cell: Cell) -> tuple[str, ...]:
    figures, threads = cell.figures, cell.inside.cpu_by_thread if cell.inside else {}
    return (
        cell.load.words,
        f"{figures.requests_per_s:,.0f}",
        f"{1e3 * figures.latency_s['p50']:.2f}",
        f"{1e3 * figures.latency_s['p99']:.2f}",
        f"{1e6 * sum(threads.values()) / figures.requests_per_s:.0f}",
        ", ".join(f"{name} {share:.0%}" for name, share in threads.items() if share >= 0.01),
        f"{figures.generator_cpu_share:.0%}",
    )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    sys.exit(experiment.main("The server's own cost", lambda setup, options: run(setup, options.rounds), parser))
