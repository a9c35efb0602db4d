"""An experiment: a run with a question of its own, on one model. What all have in common, and their command line."""

from __future__ import annotations

import argparse
import shlex
import sys
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from benchmarks.report import console, page
from benchmarks.report.results import Check, Results, Server, Table, dump
from benchmarks.runs.suite import Log, Target
from benchmarks.scenarios import scenarios, tokenizer_files
from benchmarks.scenarios.corpus import Corpus
from benchmarks.scenarios.scenarios import Requests
from benchmarks.servers.built import Built, read_built
from benchmarks.servers.endpoint import Endpoint
from benchmarks.watch import machine
from pipelines.errors import EngineryError

NAME = "enginery"


@dataclass(frozen=True, kw_only=True)
class Setup:
    """What every experiment is given."""

    built: Built
    corpus: Corpus
    scratch: Path  # logs
    log: Log

    def requests(self, scenario: str) -> Requests:
        (one,) = scenarios.by_name([scenario])
        return scenarios.make(one, self.corpus, max_tokens=self.built.max_tokens)

    def target(self, url: str, pid: int) -> Target:
        return Target(name=NAME, endpoint=Endpoint(url=url, model=self.built.name), pid=pid)


@dataclass(frozen=True, kw_only=True)
class Findings:
    """What one gave."""

    tables: tuple[Table, ...] = ()
    checks: tuple[Check, ...] = ()
    notes: tuple[str, ...] = ()


def joined(findings: Iterable[Findings]) -> Findings:
    """Those of several as one."""
    every = tuple(findings)
    return Findings(
        tables=tuple(table for one in every for table in one.tables),
        checks=tuple(check for one in every for check in one.checks),
        notes=tuple(note for one in every for note in one.notes),
    )


def setup(folder: Path, scratch: Path, log: Log) -> Setup:
    """folder: dist/MODEL of an embedding model."""
    corpus = Corpus(tokenizer_files.read(folder).data)
    return Setup(built=read_built(folder), corpus=corpus, scratch=scratch, log=log)


def main(title: str, run: Callable[[Setup, argparse.Namespace], Findings], parser: argparse.ArgumentParser) -> int:
    """The command line: prints the findings, and writes them beside the other results."""
    parser.add_argument("model", nargs="?", type=Path, default=Path("dist/all-minilm-l6-v2"), help="dist/MODEL")
    parser.add_argument("--scratch", type=Path, default=Path(".bench/logs"))
    parser.add_argument("--output", type=Path, help="OUTPUT.json and OUTPUT.html")
    arguments = parser.parse_args()
    start = time.monotonic()
    try:
        findings = run(setup(arguments.model, arguments.scratch, log), arguments)
    except EngineryError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    console.show_findings(findings.tables, findings.checks, findings.notes)
    if arguments.output is not None:
        results = as_results(title, findings, time.monotonic() - start)
        arguments.output.parent.mkdir(parents=True, exist_ok=True)
        arguments.output.with_suffix(".json").write_bytes(dump(results))
        arguments.output.with_suffix(".html").write_text(page.render(results), "utf-8")
    return 0


def as_results(title: str, findings: Findings, seconds: float) -> Results:
    return Results(
        title=title,
        date=datetime.now(UTC).isoformat(timespec="seconds"),
        command=shlex.join(["python", "-m", f"benchmarks.{Path(sys.argv[0]).stem}", *sys.argv[1:]]),
        machine=machine.describe(),
        versions=machine.versions(),
        servers=(Server(name=NAME, words="as `enginery serve` starts it", role="ours"),),
        cells=(),
        scenarios={},
        checks=findings.checks,
        tables=findings.tables,
        notes=findings.notes,
        seconds=seconds,
    )


def log(text: str) -> None:
    print(f"{datetime.now(UTC):%H:%M:%S} {text}", flush=True)
