"""`enginery bench URL`: any server with NIM's API, its figures on the terminal, as JSON and as a page."""

from __future__ import annotations

import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import pytest

from benchmarks import command
from benchmarks.command import Options
from benchmarks.report.results import Results, dump, load
from pipelines.errors import EngineryError
from tests.support import bench_server

QUICK = Options(seconds=0.1, rounds=1)


def measured(url: str, **options: Any) -> Results:
    """The results of a short run, nothing printed."""
    return command.run(url, replace(QUICK, **options), log=lambda text: None)


def test_a_server_is_measured_and_its_report_needs_nothing_else(tmp_path: Path, tokenizer: bytes) -> None:
    (tmp_path / "tokenizer.json").write_bytes(tokenizer)
    with bench_server.serve() as nim:
        results = measured(
            nim.url,
            scenario=("query-20",),
            concurrency=(1, 4),
            rate=(50,),
            tokenizer=tmp_path / "tokenizer.json",
            output=tmp_path / "out" / "results",
            check=True,
        )
    assert [(c.scenario, c.load.words) for c in results.cells] == [
        ("query-20", "1 at a time"),
        ("query-20", "4 at a time"),
        ("query-20", "50 req/s"),
    ]
    assert all(set(cell.figures.statuses) == {"200"} for cell in results.cells)
    assert [check.passed for check in results.checks] == [True]
    written = load((tmp_path / "out" / "results.json").read_bytes())
    assert written.scenarios == results.scenarios
    assert written.cells[0].figures.num_requests == results.cells[0].figures.num_requests
    page = (tmp_path / "out" / "results.html").read_text()
    assert "query-20" in page
    assert not re.search(r'(?:src|href)="(?!data:)', page)
    assert "<script" not in page
    assert (tmp_path / "out" / "results.png").read_bytes().startswith(b"\x89PNG")


def test_a_server_that_mixes_vectors_up_fails_the_check(tmp_path: Path, tokenizer: bytes) -> None:
    (tmp_path / "tokenizer.json").write_bytes(tokenizer)
    with bench_server.serve(swap_every=300) as nim:
        results = measured(
            nim.url,
            scenario=("query-20",),
            concurrency=(8,),
            tokenizer=tmp_path / "tokenizer.json",
            check=True,
            seconds=1.0,
        )
    assert not results.checks[0].passed
    assert re.match(r"[1-9]\d* wrong of", results.checks[0].value)
    assert any("cosine" in note for note in results.notes)


def test_without_a_tokenizer_the_servers_own_counts_are_reported() -> None:
    with bench_server.serve() as nim:
        results = measured(nim.url, scenario=("query-20",), concurrency=(1,))
    (cell,) = results.cells
    assert cell.figures.tokens_per_s / cell.figures.items_per_s == pytest.approx(18, abs=0.5)  # words: it counts those
    assert "lengths by words" in results.scenarios["query-20"]


def test_mixed_texts_are_measured_without_a_tokenizer() -> None:
    with bench_server.serve() as nim:
        results = measured(nim.url, scenario=("mixed",), concurrency=(8,))
    (cell,) = results.cells
    assert set(cell.figures.statuses) == {"200"}
    assert re.match(r"1 to 8 texts of \d+ to \d+ tokens, \d+ on average .*by words", results.scenarios["mixed"])


def test_only_scenarios_of_the_servers_task_are_run_and_others_are_refused_by_name() -> None:
    with bench_server.serve(task="rerank") as nim:
        results = measured(nim.url, concurrency=(1,), max_tokens=64)
        assert set(results.scenarios) == {"rerank-10", "rerank-20", "rerank-40"}
        with pytest.raises(EngineryError, match="answers rerank; it has no answer to query-20"):
            measured(nim.url, scenario=("query-20",))


def test_headers_are_sent_and_a_key_is_read_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BENCH_KEY", "secret")
    with bench_server.serve() as nim:
        measured(
            nim.url,
            scenario=("query-20",),
            concurrency=(1,),
            header=("Authorization: Bearer $BENCH_KEY",),
        )
    assert {headers.get("authorization") for headers in nim.headers} == {"Bearer secret"}
    with pytest.raises(EngineryError, match="is not 'Name: value'"):
        command.parsed(["nothing"])


def test_what_is_not_there_is_said_plainly() -> None:
    with bench_server.serve() as nim:
        url = nim.url
        with pytest.raises(EngineryError, match="does not serve other; it serves tiny"):
            measured(url, model="other")
    with pytest.raises(EngineryError, match="is the server started"):
        measured(url)


def test_the_command_prints_a_table_and_exits_with_0() -> None:
    with bench_server.serve() as nim:
        done = subprocess.run(
            [
                *(sys.executable, "-m", "pipelines.cli", "bench", nim.url, "--scenario", "query-20"),
                *("-c", "2", "--seconds", "0.2", "--rounds", "2"),
            ],
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
    assert done.returncode == 0, done.stderr
    assert "2 at a time" in done.stdout
    assert "round 2: this server, query-20, 2 at a time" in done.stderr


def test_results_are_written_and_read_again_without_loss() -> None:
    results = Results(
        title="t",
        date="2026-01-01",
        command="c",
        machine={},
        versions={},
        servers=(),
        cells=(),
        scenarios={},
        notes=("é",),
    )
    assert load(dump(results)) == results
    with pytest.raises(msgspec.ValidationError):
        load(b"{}")
