"""`enginery bench URL`: any server with NIM's API, its figures on the terminal, as JSON and as a page."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest

from benchmarks import command
from benchmarks.report import results
from benchmarks.report.results import Results
from pipelines.errors import EngineryError
from tests.support import bench_server

HOW = {"seconds": 0.1, "rounds": 1, "say": lambda text: None}


def test_a_server_is_measured_and_its_report_needs_nothing_else(tmp_path: Path, tokenizer: bytes) -> None:
    (tmp_path / "tokenizer.json").write_bytes(tokenizer)
    with bench_server.serve() as nim:
        found = command.run(
            nim.url,
            names=("query-20",),
            concurrency=(1, 4),
            rates=(50,),
            tokenizer=tmp_path / "tokenizer.json",
            output=tmp_path / "out" / "found",
            check=True,
            **HOW,  # type: ignore[arg-type]
        )
    assert [(c.scenario, c.load.words) for c in found.cells] == [
        ("query-20", "1 at a time"),
        ("query-20", "4 at a time"),
        ("query-20", "50 req/s"),
    ]
    assert all(set(cell.figures.statuses) == {"200"} for cell in found.cells)
    assert [check.passed for check in found.checks] == [True]
    written = results.load((tmp_path / "out" / "found.json").read_bytes())
    assert written.scenarios == found.scenarios
    assert written.cells[0].figures.num_requests == found.cells[0].figures.num_requests
    page = (tmp_path / "out" / "found.html").read_text()
    assert "query-20" in page
    assert not re.search(r'(?:src|href)="(?!data:)', page)
    assert "<script" not in page
    assert (tmp_path / "out" / "found.png").read_bytes().startswith(b"\x89PNG")


def test_a_server_that_mixes_vectors_up_fails_the_check(tmp_path: Path, tokenizer: bytes) -> None:
    (tmp_path / "tokenizer.json").write_bytes(tokenizer)
    with bench_server.serve(swap_every=300) as nim:
        found = command.run(
            nim.url,
            names=("query-20",),
            concurrency=(8,),
            tokenizer=tmp_path / "tokenizer.json",
            check=True,
            **HOW | {"seconds": 1.0},  # type: ignore[arg-type]
        )
    assert not found.checks[0].passed
    assert re.match(r"[1-9]\d* wrong of", found.checks[0].found)
    assert any("cosine" in note for note in found.notes)


def test_without_a_tokenizer_the_servers_own_counts_are_reported() -> None:
    with bench_server.serve() as nim:
        found = command.run(nim.url, names=("query-20",), concurrency=(1,), **HOW)  # type: ignore[arg-type]
    (cell,) = found.cells
    assert cell.figures.tokens_per_s / cell.figures.items_per_s == pytest.approx(18, abs=0.5)  # words: it counts those
    assert "lengths by words" in found.scenarios["query-20"]


def test_mixed_texts_are_measured_without_a_tokenizer() -> None:
    with bench_server.serve() as nim:
        results = command.run(nim.url, names=("mixed",), concurrency=(8,), **HOW)  # type: ignore[arg-type]
    (cell,) = results.cells
    assert set(cell.figures.statuses) == {"200"}
    assert re.match(r"1 to 8 texts of \d+ to \d+ tokens, \d+ on average .*by words", results.scenarios["mixed"])


def test_only_scenarios_of_the_servers_task_are_run_and_others_are_refused_by_name() -> None:
    with bench_server.serve(task="rerank") as nim:
        found = command.run(nim.url, concurrency=(1,), max_tokens=64, **HOW)  # type: ignore[arg-type]
        assert set(found.scenarios) == {"rerank-10", "rerank-20", "rerank-40"}
        with pytest.raises(EngineryError, match="answers rerank; it has no answer to query-20"):
            command.run(nim.url, names=("query-20",), **HOW)  # type: ignore[arg-type]


def test_headers_are_sent_and_a_key_is_read_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BENCH_KEY", "secret")
    with bench_server.serve() as nim:
        command.run(
            nim.url,
            names=("query-20",),
            concurrency=(1,),
            headers=("Authorization: Bearer $BENCH_KEY",),
            **HOW,  # type: ignore[arg-type]
        )
    assert {headers["authorization"] for headers in nim.headers} == {"Bearer secret"}
    with pytest.raises(EngineryError, match="is not 'Name: value'"):
        command.parsed(["nothing"])


def test_what_is_not_there_is_said_plainly() -> None:
    with bench_server.serve() as nim:
        url = nim.url
        with pytest.raises(EngineryError, match="does not serve other; it serves tiny"):
            command.run(url, model="other", **HOW)  # type: ignore[arg-type]
    with pytest.raises(EngineryError, match="is the server started"):
        command.run(url, **HOW)  # type: ignore[arg-type]


def test_the_command_prints_a_table_and_exits_with_0() -> None:
    with bench_server.serve() as nim:
        said = subprocess.run(
            [
                *(sys.executable, "-m", "pipelines.cli", "bench", nim.url, "--scenario", "query-20"),
                *("-c", "2", "--seconds", "0.2", "--rounds", "2"),
            ],
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
    assert said.returncode == 0, said.stderr
    assert "2 at a time" in said.stdout
    assert "round 2: this server, query-20, 2 at a time" in said.stderr


def test_results_are_written_and_read_again_without_loss() -> None:
    made = Results(
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
    assert results.load(results.dump(made)) == made
    with pytest.raises(msgspec.ValidationError):
        results.load(b"{}")
