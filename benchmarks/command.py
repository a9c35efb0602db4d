"""`enginery bench URL`: the scenarios against one running server, any that has NIM's API, with a report."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import msgspec
from cyclopts import Parameter

from benchmarks.report import bounds, console, page
from benchmarks.report.results import Cell, Check, Load, Results, Server, dump
from benchmarks.runs import suite
from benchmarks.runs.suite import Measurement, Target
from benchmarks.scenarios import estimated_lengths, scenarios, tokenizer_files
from benchmarks.scenarios.corpus import Corpus, TextSource
from benchmarks.scenarios.estimated_lengths import EstimatedCorpus
from benchmarks.scenarios.scenarios import Requests, Scenario
from benchmarks.servers.endpoint import Endpoint, discover, tasks_of
from benchmarks.watch import machine
from pipelines.errors import EngineryError

NAME = "this server"
DEFAULT_MAX_TOKENS = 512
MAX_CHECKED_TEXTS = 2048  # the right answers are asked for one text at a time


class BenchError(EngineryError):
    """The server cannot be measured as asked."""

    exit_code = 2


@dataclass(frozen=True, kw_only=True)
class Options:
    """What is measured, and how: the options of the command line."""

    scenario: Annotated[tuple[str, ...], Parameter(help="Only these; all that its model answers by default.")] = ()
    concurrency: Annotated[tuple[int, ...], Parameter(name=["--concurrency", "-c"], help="Requests at a time.")] = ()
    rate: Annotated[tuple[float, ...], Parameter(help="Open load: requests per second, at random times.")] = ()
    seconds: Annotated[float, Parameter(help="Of each load, in each round.")] = 3.0
    rounds: int = 3
    tokenizer: Annotated[
        Path | None,
        Parameter(help="tokenizer.json, a model's folder or dist/MODEL: exact token counts. Else about so many."),
    ] = None
    max_tokens: Annotated[int | None, Parameter(help="Of one text, where the tokenizer's folder does not say.")] = None
    model: str | None = None
    header: Annotated[tuple[str, ...], Parameter(help="'Authorization: Bearer $KEY': sent with each request.")] = ()
    check: Annotated[bool, Parameter(help="Compare each answer with that of the idle server.", negative="")] = False
    pid: Annotated[int | None, Parameter(help="The server's process, if it runs here: its threads are watched.")] = None
    output: Annotated[Path | None, Parameter(help="Write OUTPUT.json, OUTPUT.html and OUTPUT.png.")] = None


DEFAULTS = Options()


def bench(
    url: Annotated[str, Parameter(help="A server with NIM's API: http://127.0.0.1:8000")],
    /,
    *,
    options: Annotated[Options, Parameter(name="*")] = DEFAULTS,
) -> int:
    """Show the figures on the terminal. Exit code 1: an answer was wrong."""
    results = run(url, options, log=lambda text: print(text, file=sys.stderr))
    console.show(results)
    return 0 if all(check.passed for check in results.checks) else 1


def run(url: str, options: Options = DEFAULTS, *, log: suite.Log = print) -> Results:
    """Measure, log each round, write OUTPUT.json, .html and .png if asked. Raises EngineryError."""
    start = datetime.now(UTC)
    endpoint = discover(url, parsed(options.header), model=options.model)
    tasks = tasks_of(endpoint)
    chosen = of_tasks(scenarios.by_name(options.scenario), tasks, named=bool(options.scenario))
    texts, limit = text_source(endpoint, options.tokenizer, tasks)
    max_tokens = options.max_tokens or limit or DEFAULT_MAX_TOKENS
    streams = [scenarios.make(scenario, texts, max_tokens=max_tokens) for scenario in chosen]
    if not texts.is_exact:
        streams = [estimated_lengths.recount(requests, endpoint.num_tokens(requests)) for requests in streams]
    expected = None
    if options.check:
        log("asking for the right answers, one text at a time")
        expected = {r.scenario.name: endpoint.expected(r) for r in streams if sum(r.num_items) <= MAX_CHECKED_TEXTS}
    target = Target(name=NAME, endpoint=endpoint, pid=options.pid, expected=expected)
    measurements = [
        Measurement(
            target=target,
            requests=requests,
            load=load,
            seconds=options.seconds,
            num_requests=suite.fixed(requests) if load.mode == "closed" else 0,
        )
        for requests in streams
        for load in loads(requests, options.concurrency, options.rate)
    ]
    cells, notes = suite.run(measurements, rounds=options.rounds, log=log)
    cells = [msgspec.structs.replace(cell, bound=bounds.bound(cell)) for cell in cells]
    results = Results(
        title=f"{endpoint.model} at {endpoint.url}",
        date=start.isoformat(timespec="seconds"),
        command=f"enginery bench {url}",
        machine=machine.describe(),
        versions={"enginery": machine.versions().get("enginery", "")},
        servers=(Server(name=NAME, words=f"{endpoint.url}, model {endpoint.model}", role="ours"),),
        cells=tuple(cells),
        scenarios={requests.scenario.name: scenarios.words(requests) for requests in streams},
        checks=tuple(answer_check(requests.scenario.name, cells) for requests in streams if expected),
        notes=tuple(notes),
        seconds=(datetime.now(UTC) - start).total_seconds(),
    )
    if options.output is not None:
        options.output.parent.mkdir(parents=True, exist_ok=True)
        options.output.with_suffix(".json").write_bytes(dump(results))
        page.write(results, options.output)
    return results


def text_source(endpoint: Endpoint, tokenizer: Path | None, tasks: set[str]) -> tuple[TextSource, int | None]:
    """Texts, and the model's limit of tokens or None."""
    if tokenizer is not None:
        files = tokenizer_files.read(tokenizer)
        return Corpus(files.data), files.max_tokens
    (num_tokens,) = endpoint.num_tokens(estimated_lengths.probe("embed" if "embed" in tasks else "rerank"))
    return EstimatedCorpus(estimated_lengths.tokens_per_word(num_tokens)), None


def of_tasks(chosen: Sequence[Scenario], tasks: set[str], *, named: bool) -> list[Scenario]:
    """Those that the server answers. Raises BenchError when one was named that it does not."""
    answered = [scenario for scenario in chosen if scenario.task in tasks]
    if named and len(answered) < len(chosen):
        others = ", ".join(scenario.name for scenario in chosen if scenario.task not in tasks)
        raise BenchError(f"the server answers {' and '.join(sorted(tasks))}; it has no answer to {others}")
    return answered


def loads(requests: Requests, concurrency: Sequence[int], rates: Sequence[float]) -> list[Load]:
    """Closed loads as asked or as the scenario has them, and open ones; only open ones when only rates are given."""
    closed = concurrency or (() if rates else requests.scenario.concurrency)
    return [*(Load(concurrency=n) for n in closed), *(Load(mode="open", rate=rate) for rate in rates)]


def answer_check(scenario: str, cells: Sequence[Cell]) -> Check:
    wrong = sum(cell.figures.num_wrong for cell in cells if cell.scenario == scenario)
    total = sum(cell.figures.num_requests for cell in cells if cell.scenario == scenario)
    return Check(
        name=f"{scenario}: every answer under load is the one that the idle server gives",
        value=f"{wrong} wrong of {total}",
        required="none",
        passed=wrong == 0,
    )


def parsed(headers: Sequence[str]) -> Mapping[str, str]:
    """`Name: value`; a value `$NAME` is read from the environment, so that no key stands in a shell's history."""
    by_name = {}
    for header in headers:
        name, colon, value = header.partition(":")
        if not colon or not name.strip():
            raise BenchError(f"--header {header!r} is not 'Name: value'")
        value = value.strip()
        by_name[name.strip().lower()] = os.path.expandvars(value)
    return by_name
