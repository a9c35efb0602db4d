"""What the special runs have in common: a model's folder and texts, a watch on memory, and how results are written."""

from __future__ import annotations

import argparse
import shlex
import sys
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import numpy as np

from benchmarks.peers import prepare
from benchmarks.report import page
from benchmarks.report.results import Check, Results, Server, Table, dump
from benchmarks.runs.suite import Say, Target
from benchmarks.scenarios import scenarios, tokenizer_files
from benchmarks.scenarios.corpus import Corpus
from benchmarks.scenarios.scenarios import Requests
from benchmarks.servers.endpoint import Endpoint
from benchmarks.watch import machine, procfs
from benchmarks.watch.procfs import Memory
from pipelines.errors import EngineryError

NAME = "enginery"
MIB = 2**20


@dataclass(frozen=True, kw_only=True)
class Ground:
    """What every special run stands on."""

    built: prepare.Built
    corpus: Corpus
    scratch: Path  # logs
    say: Say

    def requests(self, scenario: str) -> Requests:
        (found,) = scenarios.by_name([scenario])
        return scenarios.make(found, self.corpus, max_tokens=self.built.max_tokens)

    def target(self, url: str, pid: int) -> Target:
        return Target(name=NAME, endpoint=Endpoint(url=url, model=self.built.name), pid=pid)


@dataclass(frozen=True, kw_only=True)
class Special:
    """What one gave."""

    tables: tuple[Table, ...]
    checks: tuple[Check, ...]
    notes: tuple[str, ...] = ()


NOTHING = Special(tables=(), checks=())


def together(found: Sequence[Special]) -> Special:
    """As one."""
    return Special(
        tables=tuple(table for one in found for table in one.tables),
        checks=tuple(check for one in found for check in one.checks),
        notes=tuple(note for one in found for note in one.notes),
    )


def ground(folder: Path, scratch: Path, say: Say) -> Ground:
    """folder: dist/MODEL of an embedding model."""
    built = prepare.chosen(folder)
    return Ground(built=built, corpus=Corpus(tokenizer_files.read(folder).data), scratch=scratch, say=say)


class Watch:
    """Reads a process's memory while something else runs. Use as a context."""

    def __init__(self, pid: int, every_s: float = 1.0) -> None:
        self._pid, self._every_s = pid, every_s
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._look, daemon=True)
        self.times: list[float] = []  # seconds since the watch began
        self.memory: list[Memory] = []

    def __enter__(self) -> Watch:
        self._began = time.monotonic()
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join(5)

    @property
    def resident(self) -> list[int]:
        return [memory.resident for memory in self.memory]

    def growth(self, after_s: float) -> tuple[float, float]:
        """(bytes between the first and the last minute's medians, bytes per hour by a straight line), from then on."""
        times = np.array(self.times)
        kept = times >= after_s
        if kept.sum() < 2:
            return 0.0, 0.0
        seconds, resident = times[kept], np.array(self.resident, dtype=np.float64)[kept]
        width = min(60.0, (seconds[-1] - seconds[0]) / 4)
        first = np.median(resident[seconds <= seconds[0] + width])
        last = np.median(resident[seconds >= seconds[-1] - width])
        return float(last - first), float(np.polyfit(seconds, resident, 1)[0] * 3600)

    def _look(self) -> None:
        while not self._stop.is_set():
            with suppress(OSError):
                now = procfs.memory(self._pid)
                self.times.append(time.monotonic() - self._began)
                self.memory.append(now)
            self._stop.wait(self._every_s)


def main_of(title: str, run: Callable[[Ground, argparse.Namespace], Special], parser: argparse.ArgumentParser) -> int:
    """The command line of a special run: prints it, and writes it beside the other results."""
    parser.add_argument("model", nargs="?", type=Path, default=Path("dist/all-minilm-l6-v2"), help="dist/MODEL")
    parser.add_argument("--scratch", type=Path, default=Path(".bench/logs"))
    parser.add_argument("--output", type=Path, help="OUTPUT.json and OUTPUT.html")
    given = parser.parse_args()
    begun = time.monotonic()
    try:
        found = run(ground(given.model, given.scratch, say), given)
    except EngineryError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    results = as_results(title, found, time.monotonic() - begun)
    show(found)
    if given.output is not None:
        given.output.parent.mkdir(parents=True, exist_ok=True)
        given.output.with_suffix(".json").write_bytes(dump(results))
        given.output.with_suffix(".html").write_text(page.render(results), "utf-8")
    return 0


def as_results(title: str, found: Special, seconds: float) -> Results:
    return Results(
        title=title,
        date=datetime.now(UTC).isoformat(timespec="seconds"),
        command=shlex.join(["python", "-m", f"benchmarks.{Path(sys.argv[0]).stem}", *sys.argv[1:]]),
        machine=machine.describe(),
        versions=machine.versions(),
        servers=(Server(name=NAME, words="as `enginery serve` starts it", role="ours"),),
        cells=(),
        scenarios={},
        checks=found.checks,
        tables=found.tables,
        notes=found.notes,
        seconds=seconds,
    )


def show(found: Special) -> None:
    for table in found.tables:
        print(f"\n{table.title}")
        rows = [table.columns, *table.rows]
        widths = [max(len(row[n]) for row in rows) for n in range(len(table.columns))]
        for row in rows:
            print("  " + "  ".join(f"{value:{width}}" for value, width in zip(row, widths, strict=True)))
        if table.note:
            print(f"  ({table.note})")
    print()
    for check in found.checks:
        print(f"{'✓' if check.passed else '✗'} {check.name}: {check.found} (wanted: {check.wanted})")
    for note in found.notes:
        print(f"  {note}")


def say(text: str) -> None:
    print(f"{datetime.now(UTC):%H:%M:%S} {text}", flush=True)
