"""A whole side-by-side run on tiny models, and servers whose answers differ."""

from __future__ import annotations

from argparse import Namespace
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from benchmarks import side_by_side
from benchmarks.limits import limit
from benchmarks.limits.raw_engine import RawEngine, Read
from benchmarks.load.job import Generator
from benchmarks.peers import fleet, models, turns
from benchmarks.report import page
from benchmarks.scenarios import tokenizer_files
from benchmarks.scenarios.corpus import Corpus
from benchmarks.servers.built import read_built


@pytest.mark.slow
def test_a_whole_run_without_a_peer_on_tiny_models(
    embed_dist: Path, rerank_dist: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    built = read_built(embed_dist), read_built(rerank_dist)
    monkeypatch.setattr(models, "build", lambda work, store: built)
    monkeypatch.setattr(turns, "SHORT_SECONDS", dict.fromkeys(turns.SHORT_SECONDS, 0.2))
    monkeypatch.setattr(limit, "ROUND_S", 0.05)
    monkeypatch.setattr(limit, "TRY_S", 0.05)
    monkeypatch.setattr(side_by_side, "REPLY_S", 0.2)
    options = Namespace(
        no_peer=True,
        work=tmp_path,
        store=tmp_path,
        scenario=[],
        short=True,
        rounds=1,
        starts=1,
        specials=False,
        peer_python=tmp_path,
    )
    results = side_by_side.measure(options)
    assert {cell.server for cell in results.cells} == {"enginery", "engine alone"}
    ours = [cell for cell in results.cells if cell.server == "enginery"]
    assert {(cell.scenario, cell.load.concurrency) for cell in ours} == {
        (name, n) for name, concurrency in turns.SHORT_LOADS.items() for n in concurrency
    }
    assert all(set(cell.figures.statuses) == {"200"} and cell.bound for cell in ours)
    assert all(check.passed for check in results.checks if check.name.startswith("the same"))
    assert "of the engine's limit" in ours[0].bound
    assert {table.title for table in results.tables} >= {
        "From the start of the process until it is ready",
        "The load generator against a server that answers at once",
    }
    page.write(results, tmp_path / "report")
    assert (tmp_path / "report.png").stat().st_size > 10_000


@pytest.mark.slow
def test_servers_that_differ_are_not_timed(embed_dist: Path, rerank_dist: Path, tmp_path: Path) -> None:
    embed, rerank = read_built(embed_dist), read_built(rerank_dist)
    corpora = [Corpus(tokenizer_files.read(folder).data) for folder in (embed_dist, rerank_dist)]
    started = fleet.start(
        embed,
        rerank,
        peer_models=tmp_path,
        peer_python=tmp_path,
        peer_engines=(),
        cache=tmp_path / "cache",
        logs=tmp_path,
        log=lambda _: None,
    )
    with started as running, Generator() as generator:
        right = fleet.compare(running, *corpora)
        assert [check.passed for check in right] == [True, True]
        turned = replace(running, engines={name: _Turned(engine) for name, engine in running.engines.items()})  # type: ignore[misc]
        assert [check.passed for check in fleet.compare(turned, *corpora)] == [False, False]
        chosen, tables = fleet.try_peers(running, [], generator, lambda _: None)
        assert (chosen, tables) == ({}, [])


class _Turned:
    """An engine that gives each text another text's answer."""

    def __init__(self, engine: RawEngine) -> None:
        self._engine = engine

    def read(self, request: Read) -> np.ndarray:  # type: ignore[type-arg]
        return np.roll(self._engine.read(request), 1, axis=0)
