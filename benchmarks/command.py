"""`enginery bench URL`: the scenarios against one running server, any that has NIM's API, with a report."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path

import msgspec

from benchmarks import suite
from benchmarks.load.endpoint import Endpoint, discover, tasks_of
from benchmarks.report import bounds, page
from benchmarks.report.results import Cell, Check, Load, Results, Server, dump
from benchmarks.scenarios import estimated_lengths, scenarios, tokenizer_files
from benchmarks.scenarios.corpus import Corpus, TextSource
from benchmarks.scenarios.scenarios import Requests
from benchmarks.suite import Target, Wanted
from benchmarks.watch import machine
from pipelines.errors import EngineryError

NAME = "this server"
DEFAULT_MAX_TOKENS = 512
MAX_CHECKED_TEXTS = 2048  # the right answers are asked for one text at a time


class BenchError(EngineryError):
    """The server cannot be measured as asked."""

    exit_code = 2


def run(
    url: str,
    *,
    names: Sequence[str] = (),
    concurrency: Sequence[int] = (),
    rates: Sequence[float] = (),
    seconds: float = 3.0,
    rounds: int = 3,
    tokenizer: Path | None = None,
    max_tokens: int | None = None,
    model: str | None = None,
    headers: Sequence[str] = (),
    check: bool = False,
    pid: int | None = None,
    output: Path | None = None,
    say: suite.Say = print,
) -> Results:
    """Measure, say each round, write OUTPUT.json, .html and .png if asked. Raises EngineryError."""
    begun = datetime.now(UTC)
    endpoint = discover(url, parsed(headers), model=model)
    tasks = tasks_of(endpoint)
    chosen = of_tasks(scenarios.by_name(names), tasks, named=bool(names))
    source, limit, about = text_source(endpoint, tokenizer, tasks)
    made = [scenarios.make(s, source, max_tokens=max_tokens or limit or DEFAULT_MAX_TOKENS) for s in chosen]
    if tokenizer is None:
        made = [estimated_lengths.counted(endpoint, requests) for requests in made]
    expected = None
    if check:
        say("asking for the right answers, one text at a time")
        expected = {r.scenario.name: endpoint.expected(r) for r in made if sum(r.num_items) <= MAX_CHECKED_TEXTS}
    target = Target(name=NAME, endpoint=endpoint, pid=pid, expected=expected)
    wanted = [
        Wanted(
            target=target,
            requests=requests,
            load=load,
            seconds=seconds,
            num_requests=suite.fixed(requests) if load.mode == "closed" else 0,
        )
        for requests in made
        for load in loads(requests, concurrency, rates)
    ]
    cells, notes = suite.run(wanted, rounds=rounds, say=say)
    cells = [msgspec.structs.replace(cell, bound=bounds.bound(cell)) for cell in cells]
    results = Results(
        title=f"{endpoint.model} at {endpoint.url}",
        date=begun.isoformat(timespec="seconds"),
        command=f"enginery bench {url}",
        machine=machine.describe(),
        versions={"enginery": machine.versions().get("enginery", "")},
        servers=(Server(name=NAME, words=f"{endpoint.url}, model {endpoint.model}", role="ours"),),
        cells=tuple(cells),
        scenarios={r.scenario.name: f"{scenarios.words(r)}{about}" for r in made},
        checks=tuple(answer_check(requests.scenario.name, cells) for requests in made if expected) if expected else (),
        notes=tuple(notes),
        seconds=(datetime.now(UTC) - begun).total_seconds(),
    )
    if output is not None:
        output.parent.mkdir(parents=True, exist_ok=True)
        output.with_suffix(".json").write_bytes(dump(results))
        page.write(results, output)
    return results


def text_source(endpoint: Endpoint, tokenizer: Path | None, tasks: set[str]) -> tuple[TextSource, int | None, str]:
    """Texts, the model's limit where it is known, and what a report must say of the lengths."""
    if tokenizer is not None:
        found = tokenizer_files.read(tokenizer)
        return Corpus(found.data), found.max_tokens, ""
    ratio = estimated_lengths.tokens_per_word(endpoint, tasks)
    return estimated_lengths.WordCorpus(ratio), None, "; lengths by words, about so many tokens each"


def of_tasks(found: Sequence[scenarios.Scenario], tasks: set[str], *, named: bool) -> list[scenarios.Scenario]:
    """Those that the server answers. Raises BenchError when one was named that it does not."""
    left = [scenario for scenario in found if scenario.task in tasks]
    if named and len(left) < len(found):
        others = ", ".join(scenario.name for scenario in found if scenario.task not in tasks)
        raise BenchError(f"the server answers {' and '.join(sorted(tasks))}; it has no answer to {others}")
    return left


def loads(requests: Requests, concurrency: Sequence[int], rates: Sequence[float]) -> list[Load]:
    """Closed loads as asked or as the scenario has them, and open ones; only open ones when only rates are given."""
    closed = concurrency or (() if rates else requests.scenario.concurrency)
    return [*(Load(concurrency=n) for n in closed), *(Load(mode="open", rate=rate) for rate in rates)]


def answer_check(scenario: str, cells: Sequence[Cell]) -> Check:
    wrong = sum(cell.figures.num_wrong for cell in cells if cell.scenario == scenario)
    total = sum(cell.figures.num_requests for cell in cells if cell.scenario == scenario)
    return Check(
        name=f"{scenario}: every answer under load is the one that the idle server gives",
        found=f"{wrong} wrong of {total}",
        wanted="none",
        passed=wrong == 0,
    )


def parsed(headers: Sequence[str]) -> Mapping[str, str]:
    """`Name: value`; a value `$NAME` is read from the environment, so that no key stands in a shell's history."""
    found = {}
    for header in headers:
        name, colon, value = header.partition(":")
        if not colon or not name.strip():
            raise BenchError(f"--header {header!r} is not 'Name: value'")
        value = value.strip()
        found[name.strip().lower()] = os.path.expandvars(value)
    return found
