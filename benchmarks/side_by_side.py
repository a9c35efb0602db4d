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
from benchmarks.peers import fleet as fleets
from benchmarks.peers import goals, models, prepare, turns
from benchmarks.peers.fleet import OURS, Fleet
from benchmarks.peers.prepare import Built
from benchmarks.report import page
from benchmarks.report.results import Load, Results, Table, dump
from benchmarks.runs import experiment as special_runs
from benchmarks.runs import suite
from benchmarks.runs.experiment import Ground, Special
from benchmarks.runs.suite import Target, Wanted
from benchmarks.scenarios import scenarios, tokenizer_files
from benchmarks.scenarios.corpus import Corpus
from benchmarks.scenarios.scenarios import Requests
from benchmarks.servers import processes
from benchmarks.servers.endpoint import Endpoint
from benchmarks.watch import machine, procfs
from benchmarks.watch.procfs import Memory
from pipelines.errors import EngineryError

SHORT_PEERS = ("optimum", "torch-bf16")  # torch as it comes was the slowest at everything but short mixed loads
REPLY_S = 2.0  # how long the generator is measured against a server that does nothing


def main() -> int:
    given = arguments()
    begun = time.monotonic()
    try:
        results = measure(given)
    except EngineryError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    results = msgspec.structs.replace(results, seconds=time.monotonic() - begun)
    stem = given.output / f"{results.date[:10]}-{'short' if given.short else 'side-by-side'}"
    stem.parent.mkdir(parents=True, exist_ok=True)
    stem.with_suffix(".json").write_bytes(dump(results))
    page.write(results, stem)
    missed = [check for check in results.checks if not check.passed]
    for check in missed:
        say(f"not reached: {check.name}: {check.found}; wanted {check.wanted}")
    say(f"{stem}.html: {len(results.checks) - len(missed)} of {len(results.checks)} checks and goals reached")
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
    given = parser.parse_args()
    given.rounds = given.rounds or (3 if given.short else 5)
    given.starts = given.starts or (3 if given.short else 5)
    return given


def measure(given: argparse.Namespace) -> Results:
    """The whole run. Raises EngineryError, also when the servers' answers differ."""
    peer_versions = {} if given.no_peer else prepare.peer_versions(given.peer_python)
    say("models and builds")
    embed, rerank = prepare.build(given.work, given.store)
    corpora = {"embed": Corpus(tokenizer_files.read(embed.folder).data)}
    corpora["rerank"] = Corpus(tokenizer_files.read(rerank.folder).data)
    wanted = [s for s in scenarios.by_name(given.scenario) if not given.short or s.name in turns.SHORT_LOADS]
    limits = {"embed": embed.max_tokens, "rerank": rerank.max_tokens}
    requests = [scenarios.make(s, corpora[s.task], max_tokens=limits[s.task]) for s in wanted]
    say("starts")
    cache, logs = given.work / "cache", given.work / "logs"
    shutil.rmtree(cache, ignore_errors=True)  # what it knows of the machine it finds out in this run
    first, *starts = (start_and_size.measure(embed.folder, logs, cache) for _ in range(1 + given.starts))
    started = fleets.start(
        embed,
        rerank,
        peer_models=given.work / "models",
        peer_python=given.peer_python,
        peer_engines=() if given.no_peer else SHORT_PEERS if given.short else tuple(processes.INFINITY_ENGINES),
        cache=cache,
        logs=logs,
        say=say,
    )
    with started as fleet, Generator() as generator:
        at_rest = memory_of(fleet)
        say("compare the answers")
        checks = fleets.compare(fleet, corpora["embed"], corpora["rerank"])
        if unequal := [f"  {check.name}: {check.found}" for check in checks if not check.passed]:
            raise EngineryError("\n".join(["answers differ, so times are not compared:", *unequal]))
        chosen, trials = fleets.try_peers(fleet, requests, generator, say)
        cells, notes = turns.take(fleet, requests, chosen, generator, say, rounds=given.rounds, short=given.short)
        same = turns.same_batches(fleet, requests, cells)
        for mixed in (r for r in requests if r.scenario.kind == "mixed" and not given.short):
            load = Load(concurrency=max(mixed.scenario.concurrency))
            same[mixed.scenario.name, load] = turns.own_batches(fleet, mixed, load, generator, logs=logs, cache=cache)
        memory = memory_table(at_rest, memory_of(fleet))
        null = generator_table(requests[0], generator, logs)
        described = fleets.described(fleet, chosen, peer_versions.get("infinity-emb", ""))
    special = specials(embed, corpora["embed"], logs) if given.specials and not given.short else special_runs.NOTHING
    results = Results(
        title="Enginery beside its own engine" if given.no_peer else "Enginery beside Infinity and its own engine",
        date=datetime.now(UTC).isoformat(timespec="seconds"),
        command=shlex.join(["python", "-m", "benchmarks.side_by_side", *sys.argv[1:]]),
        machine=machine.describe(),
        versions={**machine.versions(), **{f"peer's {name}": version for name, version in peer_versions.items()}},
        servers=described,
        cells=tuple(turns.with_bounds(cells, same)),
        scenarios={found.scenario.name: scenarios.words(found) for found in requests},
        tables=(
            *trials,
            turns.same_table(same),
            start_and_size.start_table(starts, first),
            *special.tables,
            null,
            memory,
            *start_and_size.size_tables(Path("dist") / models.EMBED, models.EMBED),
        ),
        notes=(*notes, *special.notes),
    )
    ready, resident = (median(values) for values in zip(*((s.ready_s, s.memory.resident) for s in starts), strict=True))
    found = (*checks, *goals.checks(results, OURS, same), *special.checks, *goals.at_start(ready, resident))
    return msgspec.structs.replace(results, checks=found)


def specials(embed: Built, corpus: Corpus, logs: Path) -> Special:
    """The runs that ask other questions than how fast it is; each is a command of its own too."""
    on = Ground(built=embed, corpus=corpus, scratch=logs, say=say)
    found = (
        overhead.run(on, rounds=3),
        padding.run(on, seconds=12.0),
        overload.run(on, seconds=120.0, times=4.0, scenario="query-20"),
        overload.run(on, seconds=60.0, times=4.0, scenario="mixed"),
    )
    return special_runs.together(found)


def memory_of(fleet: Fleet) -> dict[str, Memory]:
    running = {f"{OURS}, {model}": server for model, server in fleet.own.items()}
    running |= {fleets.peer_name(engine): server for engine, server in fleet.peers.items()}
    return {name: procfs.memory(server.pid) for name, server in running.items()}


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
            wanted = Wanted(target=target, requests=requests, load=Load(concurrency=concurrency), seconds=REPLY_S)
            found = suite.measure(generator, wanted, 0).figures
            cost = f"{found.generator_us_per_request:.1f} µs"
            rows.append((wanted.load.words, f"{found.requests_per_s:,.0f}", cost))
    return Table(
        title="The load generator against a server that answers at once",
        columns=("", "req/s", "its CPU time per request"),
        rows=tuple(rows),
        note="It is a process of its own; its share of a core in each measurement stands in the last column above.",
    )


def say(text: str) -> None:
    print(f"{datetime.now(UTC):%H:%M:%S} {text}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
