"""The side-by-side run: equal answers first, shapes of the limit, goals, and a whole run on tiny models."""

from __future__ import annotations

from argparse import Namespace
from dataclasses import replace
from pathlib import Path

import msgspec
import numpy as np
import pytest

from benchmarks import side_by_side
from benchmarks.limits import shapes
from benchmarks.limits.raw_engine import RawEngine, Read, Timed, packed
from benchmarks.load.job import Generator
from benchmarks.peers import equivalence, fleet, goals, prepare, turns
from benchmarks.report import page as report
from benchmarks.report.figures import Figures
from benchmarks.report.results import Cell, Check, Load, Results, Server, dump, load
from benchmarks.scenarios import scenarios, tokenizer_files
from benchmarks.scenarios.corpus import Corpus
from benchmarks.watch.scrape import Inside
from tests.support.profiles import Tiny
from tests.support.side_by_side import ROW


def figures(items_per_s: float, p50: float = 0.01, p99: float = 0.02) -> Figures:
    return Figures(
        num_requests=10,
        requests_per_s=items_per_s,
        items_per_s=items_per_s,
        tokens_per_s=20 * items_per_s,
        latency_s={"p50": p50, "p90": p50, "p95": p99, "p99": p99, "mean": p50, "max": p99},
        statuses={"200": 10},
        num_wrong=0,
        wall_s=1.0,
        generator_cpu_share=0.01,
        generator_us_per_request=10.0,
        lag_p99_s=0.0,
    )


def results(*cells: Cell, **how: object) -> Results:
    servers = [("enginery", "ours"), ("Infinity optimum", "peer"), ("engine alone", "limit")]
    return Results(
        title="t",
        date="2026-11-21",
        command="c",
        machine={"CPU": "one", "cores": "2"},
        versions={"enginery": "0.1.0"},
        servers=tuple(Server(name=name, words="", role=role) for name, role in servers),  # type: ignore[arg-type]
        cells=cells,
        scenarios={cell.scenario: "texts" for cell in cells},
        **how,  # type: ignore[arg-type]
    )


def cells(ours: Figures, peer: Figures, limit: Figures, scenario: str = "query-20", concurrency: int = 1) -> list[Cell]:
    load = Load(concurrency=concurrency)
    names = ("enginery", "Infinity optimum", "engine alone")
    return [
        Cell(scenario=scenario, load=load, server=name, figures=found)
        for name, found in zip(names, (ours, peer, limit), strict=True)
    ]


def test_vectors_that_point_elsewhere_are_not_the_same() -> None:
    rng = np.random.default_rng(0)
    reference = rng.standard_normal((8, 32)).astype(np.float32)
    assert equivalence.check_vectors("a", 3 * reference, reference).passed  # length says nothing
    other = reference.copy()
    other[5] = reference[4]
    found = equivalence.check_vectors("a", other, reference)
    assert not found.passed
    assert "lowest cosine" in found.found


def test_a_constant_cannot_hide_that_scores_differ() -> None:
    reference = np.array([100.0, 101.0, 102.0, 103.0], dtype=np.float32)
    assert equivalence.check_scores("a", reference + 0.001, reference).passed
    assert not equivalence.check_scores("a", reference[::-1], reference).passed


def test_every_server_is_compared_with_the_reference() -> None:
    rows, scores = np.eye(4, dtype=np.float32), np.arange(4, dtype=np.float32)
    wrong = {"enginery": rows, "a": rows, "b": rows[::-1]}
    found = equivalence.checks(wrong, {"enginery": scores, "a": scores}, "enginery")
    assert [(check.name, check.passed) for check in found] == [
        ("the same vectors: a and enginery", True),
        ("the same vectors: b and enginery", False),
        ("the same scores: a and enginery", True),
    ]


def test_packing_keeps_every_item_and_the_budget() -> None:
    lengths = [5, 512, 40, 41, 39, 8, 300, 300]
    batches = packed(lengths, max_tokens=600, max_items=3)
    assert sorted(length for batch in batches for length in batch) == sorted(lengths)
    assert all(len(batch) * max(batch) <= 600 and len(batch) <= 3 for batch in batches)
    assert packed([700], max_tokens=600, max_items=3) == ((700,),)
    assert packed([], max_tokens=600, max_items=3) == ()


def test_shapes_of_the_limit_hold_no_more_than_the_load_has_under_way() -> None:
    (scenario,) = scenarios.by_name(["query-20"])
    requests = scenarios.Requests(
        scenario=scenario, texts=(), queries=(), num_items=(), num_tokens=(), longest=20, lengths=(20,)
    )
    found = shapes.limits(requests, [Load(concurrency=3)], None, max_items=64, num_cores=2)  # type: ignore[arg-type]
    assert [shape.words for shape in found[0].shapes] == ["1 x 20", "2 x 20", "3 x 20", "2 at once of 1 x 20"]
    (capped,) = shapes.limits(requests, [Load(concurrency=15)], None, max_items=8, num_cores=2)  # type: ignore[arg-type]
    assert max(shape.num_items for shape in capped.shapes) == 8


def test_the_batch_that_the_server_ran_is_read_from_its_metrics() -> None:
    (scenario,) = scenarios.by_name(["passage-300"])
    requests = scenarios.Requests(
        scenario=scenario, texts=(), queries=(), num_items=(), num_tokens=(), longest=300, lengths=()
    )
    (cell, *_) = cells(figures(1), figures(1), figures(1))
    ran = msgspec.structs.replace(cell, inside=Inside(batch_items=12.7))
    shape = shapes.same_batch(ran, requests, max_items=64)
    assert shape is not None
    assert shape.words == "13 x 300"
    assert shapes.same_batch(cell, requests, max_items=64) is None


def test_the_batches_of_a_mixed_stream_are_read_from_the_servers_log() -> None:
    log = """2026-11-21 10:00:00,000 DEBUG batch of 3 x 48, 2.1 ms
2026-11-21 10:00:00,001 INFO request note='batch of 9 x 9,'
2026-11-21 10:00:00,002 DEBUG batch of 1 x 512, 12.0 ms
"""
    shape = shapes.batches_of(log, 2)
    assert shape.batches == ((48, 48, 48), (512,))
    assert (shape.words, shape.num_items, shape.num_streams) == ("its own 2 batches", 4, 2)


def test_goals_are_judged_against_the_best_peer_and_the_engine() -> None:
    found = goals.checks(results(*cells(figures(299, p99=0.021), figures(100), figures(400))), "enginery", {})
    assert [(check.passed, check.found) for check in found] == [
        (False, "2.99 x (299.0 and 100.0)"),
        (False, "21.00 ms and 20.00 ms"),
        (True, "10.00 ms and 10.00 ms"),
    ]
    found = goals.checks(results(*cells(figures(300), figures(100), figures(400))), "enginery", {})
    assert [check.passed for check in found] == [True, True, True]


def test_at_saturation_the_engines_own_batches_are_the_measure() -> None:
    made = results(*cells(figures(90), figures(10), figures(200), "query-20", 15))
    (share,) = goals.checks(made, "enginery", {})
    assert not share.passed
    same = Cell(scenario="query-20", load=Load(concurrency=15), server="engine alone", figures=figures(100))
    beside = goals.Beside(ours=made.cells[0], alone=same)
    (share,) = goals.checks(made, "enginery", {("query-20", Load(concurrency=15)): beside})
    assert share.passed
    assert share.found == "90% (90.0 of 100.0)"


def test_one_query_may_take_a_little_longer_than_the_engines_call() -> None:
    (ours, _, limit) = cells(figures(1, p50=0.0036), figures(1), figures(1, p50=0.002))
    assert goals.one_query(ours, limit).passed
    assert not goals.one_query(msgspec.structs.replace(ours, figures=figures(1, p50=0.00361)), limit).passed


def test_the_start_has_its_goals() -> None:
    assert [check.passed for check in goals.at_start(2.4, 399e6)] == [True, True]
    assert [check.passed for check in goals.at_start(2.6, 401e6)] == [False, False]


def test_the_report_shows_every_cell_its_ratios_and_every_check() -> None:
    made = results(
        *cells(figures(333), figures(100), figures(400)),
        checks=(Check(name="a goal", found="1 <x>", wanted="2", passed=False),),
        notes=("something broke",),
    )
    page = report.render(made)
    for words in ("3.33 ×", "83 %", "✗ not reached", "1 &lt;x&gt;", "something broke", "3.3 ×", "1 at a time"):
        assert words in page, words
    assert load(dump(made)) == made


def test_the_peers_environment_that_is_missing_is_said_plainly(tmp_path: Path) -> None:
    with pytest.raises(prepare.EngineryError, match="make bench makes it"):
        prepare.peer_versions(tmp_path / "python")


def test_the_engine_alone_gives_the_vectors_of_its_model(embed_dist: Path, tiny: Tiny) -> None:
    texts = ["w1 w2 w3", "w4", "w5 w6 w7 w8 w9"]
    with RawEngine(embed_dist, ROW) as engine:
        found = engine.read(Read(texts=tuple(texts)))
        seconds = engine.times(Timed(batches=((5, 9), (30,)), seconds=0.05, multiple=16))
        at_once = engine.times(Timed(batches=((5, 9), (30,)), seconds=0.05, num_streams=2))
    assert np.allclose(found, tiny.reference(texts), atol=1e-6)
    assert seconds.shape[1] == 2
    assert (seconds > 0).all()
    assert at_once.shape[1] == 2
    assert len(at_once) >= 2  # a pass of each


def test_rates_of_the_limit_are_of_all_that_runs_at_once() -> None:
    seconds = np.array([[0.1], [0.1], [0.4]])
    assert shapes.rate(seconds, shapes.uniform(5, 20)) == pytest.approx(50)
    assert shapes.rate(seconds, shapes.uniform(5, 20, 2)) == pytest.approx(100)
    assert shapes.of_times(seconds, shapes.uniform(5, 20, 2)).items_per_s == pytest.approx(100)


@pytest.mark.slow
def test_a_whole_run_without_a_peer_on_tiny_models(
    embed_dist: Path, rerank_dist: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    built = prepare.chosen(embed_dist), prepare.chosen(rerank_dist)
    monkeypatch.setattr(prepare, "build", lambda work, store: built)
    monkeypatch.setattr(turns, "SHORT_SECONDS", dict.fromkeys(turns.SHORT_SECONDS, 0.2))
    monkeypatch.setattr(shapes, "ROUND_S", 0.05)
    monkeypatch.setattr(shapes, "TRY_S", 0.05)
    monkeypatch.setattr(side_by_side, "REPLY_S", 0.2)
    given = Namespace(
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
    found = side_by_side.measure(given)
    assert {cell.server for cell in found.cells} == {"enginery", "engine alone"}
    ours = [cell for cell in found.cells if cell.server == "enginery"]
    assert {(cell.scenario, cell.load.concurrency) for cell in ours} == {
        (name, n) for name, concurrency in turns.SHORT_LOADS.items() for n in concurrency
    }
    assert all(set(cell.figures.statuses) == {"200"} and cell.bound for cell in ours)
    assert all(check.passed for check in found.checks if check.name.startswith("the same"))
    assert "of the engine's limit" in ours[0].bound
    assert {table.title for table in found.tables} >= {
        "From the start of the process until it is ready",
        "The load generator against a server that answers at once",
    }
    report.write(found, tmp_path / "report")
    assert (tmp_path / "report.png").stat().st_size > 10_000


@pytest.mark.slow
def test_servers_that_differ_are_not_timed(embed_dist: Path, rerank_dist: Path, tmp_path: Path) -> None:
    embed, rerank = prepare.chosen(embed_dist), prepare.chosen(rerank_dist)
    corpora = [Corpus(tokenizer_files.read(folder).data) for folder in (embed_dist, rerank_dist)]
    started = fleet.start(
        embed,
        rerank,
        peer_models=tmp_path,
        peer_python=tmp_path,
        peer_engines=(),
        cache=tmp_path / "cache",
        logs=tmp_path,
        say=lambda _: None,
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

    def read(self, asked: Read) -> np.ndarray:  # type: ignore[type-arg]
        return np.roll(self._engine.read(asked), 1, axis=0)
