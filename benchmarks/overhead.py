"""What the server itself costs: single queries against an engine that costs nothing, answers in base64.

python -m benchmarks.overhead [dist/MODEL] [--rounds 5]
"""

from __future__ import annotations

import argparse
import sys

from benchmarks.load.job import Generator
from benchmarks.report.results import Check, Load, Table
from benchmarks.runs import experiment, suite
from benchmarks.runs.experiment import Ground, Special
from benchmarks.runs.suite import Wanted
from benchmarks.servers import processes

CONCURRENCY = (1, 8, 16, 32, 64)
WANTED = 5000  # req/s
ROUND_S = 2.0


def run(on: Ground, rounds: int) -> Special:
    requests = on.requests("query-20")
    root = on.built.folder / "rootfs"
    environ = processes.serving_environment(on.built.folder, 0)
    del environ["NIM_HTTP_API_PORT"]  # it takes the port as an argument
    environ["NIM_CACHE_PATH"] = str((on.scratch / "cache-null").absolute())
    with (
        processes.module(
            "benchmarks.servers.null_server", [str(root), "PORT"], "/v1/health/ready", on.scratch / "null.log", environ
        ) as running,
        Generator() as generator,
    ):
        target = on.target(running.url, running.pid)
        suite.measure(
            generator, Wanted(target=target, requests=requests, load=Load(concurrency=32), seconds=2), 0
        )  # warms up
        wanted = [
            Wanted(target=target, requests=requests, load=Load(concurrency=n), seconds=ROUND_S) for n in CONCURRENCY
        ]
        cells, notes = suite.run(wanted, rounds=rounds, say=on.say, generator=generator)
    rows = []
    for cell in cells:
        found = cell.figures
        threads = cell.inside.cpu_by_thread if cell.inside else {}
        cpu = ", ".join(f"{name} {share:.0%}" for name, share in threads.items() if share >= 0.01)
        rows.append(
            (
                cell.load.words,
                f"{found.requests_per_s:,.0f}",
                f"{1e3 * found.latency_s['p50']:.2f}",
                f"{1e3 * found.latency_s['p99']:.2f}",
                f"{1e6 * sum(threads.values()) / found.requests_per_s:.0f}",
                cpu,
                f"{found.generator_cpu_share:.0%}",
            )
        )
    best = max(cells, key=lambda cell: cell.figures.requests_per_s)
    return Special(
        tables=(
            Table(
                title="One query per request, with an engine that costs nothing",
                columns=("", "req/s", "P50 ms", "P99 ms", "server µs/request", "server's threads", "generator"),
                rows=tuple(rows),
                note="Tokenising, batching, HTTP and JSON are the server's own. Shares are of one core.",
            ),
        ),
        checks=(
            Check(
                name="single queries per second with an engine that costs nothing",
                found=f"{best.figures.requests_per_s:,.0f} ({best.load.words})",
                wanted=f"{WANTED:,} or more",
                passed=best.figures.requests_per_s >= WANTED,
            ),
        ),
        notes=tuple(notes),
    )


if __name__ == "__main__":
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--rounds", type=int, default=5)
    sys.exit(experiment.main_of("The server's own cost", lambda on, given: run(on, given.rounds), options))
