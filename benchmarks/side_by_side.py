"""This server, Infinity and the engine alone, in turn on one machine, over all scenarios: `make bench`.

python -m benchmarks.side_by_side [--short] [--rounds N] [--no-peer] [--output benchmarks/results]

Their answers are compared before any of their times.
"""

from __future__ import annotations

import argparse
import shlex
import shutil
import sys
import time
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from statistics import median

import msgspec

from benchmarks import overhead, overload, padding, start_and_size
from benchmarks.load.job import Generator
from benchmarks.peers import fleet, goals, infinity, models, turns
from benchmarks.peers.fleet import OURS, Fleet
from benchmarks.report import page
from benchmarks.report.results import Load, Results, Table, dump
from benchmarks.runs import experiment, suite
from benchmarks.runs.experiment import Findings, Setup, log
from benchmarks.runs.suite import Measurement, Target
from benchmarks.scenarios import scenarios, tokenizer_files
from benchmarks.scenarios.corpus import Corpus
from benchmarks.scenarios.scenarios import Requests
from benchmarks.servers import processes
from benchmarks.servers.built import Built
from benchmarks.servers.endpoint import Endpoint
from benchmarks.watch import machine, procfs
from benchmarks.watch.procfs import Memory
from pipelines.errors import EngineryError

SHORT_PEERS = ("optimum", "torch-bf16")  # torch as it comes was the slowest at everything but short mixed loads
REPLY_S = 2.0  # how long the generator is measured against a server that does nothing


def main() -> int:
    options = arguments()
    start = time.monotonic()
    try:
        results = measure(options)
    except EngineryError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    results = msgspec.structs.replace(results, seconds=time.monotonic() - start)
    stem = options.output / f"{results.date[:10]}-{'short' if options.short else 'side-by-side'}"
    stem.parent.mkdir(parents=True, exist_ok=True)
    stem.with_suffix(".json").write_bytes(dump(results))
    page.write(results, stem)
    missed = [check for check in results.checks if not check.passed]
    for check in missed:
        log(f"not reached: {check.name}: {check.value}; wanted {check.required}")
    log(f"{stem}.html: {len(results.checks) - len(missed)} of {len(results.checks)} checks and goals reached")
    return 0


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--short", action="store_true", help="few cells and 3 rounds: a few minutes")
    parser.add_argument("--rounds", type=int, help="5, short 3")
    parser.add_argument("--starts", type=int, help="5, short 3")
    parser.add_argument("--scenario", nargs="+", default=[], help="only these")
    parser.add_argument("--no-peer", action="store_true")
    parser.add_argument("--no-specials", dest="specials", action="store_false", help="no overload, padding, overhead")
    parser.add_argument("--peer-python", type=Path, default=Path(".venv-peer/bin/python"))
    parser.add_argument("--work", type=Path, default=Path(".bench"), help="models, builds and logs")
    parser.add_argument("--store", type=Path, default=Path(".store"))
    parser.add_argument("--output", type=Path, default=Path("benchmarks/results"))
    options = parser.parse_args()
    options.rounds = options.rounds or (3 if options.short else 5)
    options.starts = options.starts or (3 if options.short else 5)
    return options


def measure(options: argparse.Namespace) -> Results:
    """The whole run. Raises EngineryError, also when the servers' answers differ."""
    peer_versions = {} if options.no_peer else infinity.versions(options.peer_python)
    log("models and builds")
    embed, rerank = models.build(options.work, options.store)
    corpora = {"embed": Corpus(tokenizer_files.read(embed.folder).data)}
    corpora["rerank"] = Corpus(tokenizer_files.read(rerank.folder).data)
    chosen = [s for s in scenarios.by_name(options.scenario) if not options.short or s.name in turns.SHORT_LOADS]
    limits = {"embed": embed.max_tokens, "rerank": rerank.max_tokens}
    requests = [scenarios.make(s, corpora[s.task], max_tokens=limits[s.task]) for s in chosen]
    log("starts")
    cache, logs = options.work / "cache", options.work / "logs"
    shutil.rmtree(cache, ignore_errors=True)  # what it remembers of the machine it measures in this run
    first, *starts = (start_and_size.measure(embed.folder, logs, cache) for _ in range(1 + options.starts))
    started = fleet.start(
        embed,
        rerank,
        peer_models=options.work / "models",
        peer_python=options.peer_python,
        peer_engines=() if options.no_peer else SHORT_PEERS if options.short else tuple(infinity.ENGINES),
        cache=cache,
        logs=logs,
        log=log,
    )
    with started as running, Generator() as generator:
        at_rest = memory_of(running)
        log("compare the answers")
        checks = fleet.compare(running, corpora["embed"], corpora["rerank"])
        if unequal := [f"  {check.name}: {check.value}" for check in checks if not check.passed]:
            raise EngineryError("\n".join(["answers differ, so times are not compared:", *unequal]))
        engines, trials = fleet.try_peers(running, requests, generator, log)
        cells, notes = turns.take(
            running, requests, engines, generator, log, rounds=options.rounds, short=options.short
        )
        same = turns.same_batches(running, requests, cells)
        for mixed in (r for r in requests if r.scenario.kind == "mixed" and not options.short):
            load = Load(concurrency=max(mixed.scenario.concurrency))
            beside = turns.own_batches(running, mixed, load, generator, logs=logs, cache=cache)
            same[mixed.scenario.name, load] = beside
        memory = memory_table(at_rest, memory_of(running))
        null = generator_table(requests[0], generator, logs)
        described = fleet.described(running, engines, peer_versions.get("infinity-emb", ""))
    run_experiments = options.specials and not options.short
    findings = experiments(embed, corpora["embed"], logs) if run_experiments else Findings()
    results = Results(
        title="Enginery beside its own engine" if options.no_peer else "Enginery beside Infinity and its own engine",
        date=datetime.now(UTC).isoformat(timespec="seconds"),
        command=shlex.join(["python", "-m", "benchmarks.side_by_side", *sys.argv[1:]]),
        machine=machine.describe(),
        versions={**machine.versions(), **{f"peer's {name}": version for name, version in peer_versions.items()}},
        servers=described,
        cells=tuple(turns.with_bounds(cells, same)),
        scenarios={r.scenario.name: scenarios.words(r) for r in requests},
        tables=(
            *trials,
            turns.same_table(same),
            start_and_size.start_table(starts, first),
            *findings.tables,
            null,
            memory,
            *start_and_size.size_tables(Path("dist") / models.EMBED, models.EMBED),
        ),
        notes=(*notes, *findings.notes),
    )
    ready, resident = (median(values) for values in zip(*((s.ready_s, s.memory.resident) for s in starts), strict=True))
    judged = (*checks, *goals.checks(results, OURS, same), *findings.checks, *goals.at_start(ready, resident))
    return msgspec.structs.replace(results, checks=judged)


def experiments(embed: Built, corpus: Corpus, logs: Path) -> Findings:
    """Those that belong to the whole run; each is a command of its own too."""
    setup = Setup(built=embed, corpus=corpus, scratch=logs, log=log)
    return experiment.joined(
        (
            overhead.run(setup, rounds=3),
            padding.run(setup, seconds=12.0),
            overload.run(setup, seconds=120.0, times=4.0, scenario="query-20"),
            overload.run(setup, seconds=60.0, times=4.0, scenario="mixed"),
        )
    )


def memory_of(running: Fleet) -> dict[str, Memory]:
    servers = {f"{OURS}, {model}": server for model, server in running.own.items()}
    servers |= {fleet.peer_name(engine): server for engine, server in running.peers.items()}
    return {name: procfs.memory(server.pid) for name, server in servers.items()}


def memory_table(before: Mapping[str, Memory], after: Mapping[str, Memory]) -> Table:
    def mib(size: int) -> str:
        return f"{size / 2**20:.0f} MiB"

    return Table(
        title="Resident memory of the servers in this run",
        columns=("", "at rest", "after the load", "the most"),
        rows=tuple((name, mib(before[name].resident), mib(m.resident), mib(m.peak)) for name, m in after.items()),
        note="This server runs once for each model; Infinity serves both models in one process.",
    )


def generator_table(requests: Requests, generator: Generator, logs: Path) -> Table:
    """The same generator against a server that does nothing: shows that it is not what is measured."""
    rows = []
    with processes.module("benchmarks.servers.reply_server", ["PORT", "2048"], "/", logs / "reply.log") as running:
        target = Target(name="null", endpoint=Endpoint(url=running.url, model="null"))
        for concurrency in (1, 7, 15):
            load = Load(concurrency=concurrency)
            measurement = Measurement(target=target, requests=requests, load=load, seconds=REPLY_S)
            figures = suite.measure(generator, measurement, 0).figures
            cost = f"{figures.generator_us_per_request:.1f} µs"
            rows.append((load.words, f"{figures.requests_per_s:,.0f}", cost))
    return Table(
        title="The load generator against a server that answers at once",
        columns=("", "req/s", "its CPU time per request"),
        rows=tuple(rows),
        note="It is a process of its own; its share of a core in each measurement stands in the last column above.",
    )


if __name__ == "__main__":
    sys.exit(main())
