"""Goals: judged against the best peer and the engine, and by the start."""

from __future__ import annotations

import msgspec

from benchmarks.peers import goals
from benchmarks.report.results import Cell, Load
from tests.support.results import cells, figures, results


def test_goals_are_judged_against_the_best_peer_and_the_engine() -> None:
    checks = goals.checks(results(*cells(figures(299, p99=0.021), figures(100), figures(400))), "enginery", {})
    assert [(check.passed, check.value) for check in checks] == [
        (False, "2.99 x (299.0 and 100.0)"),
        (False, "21.00 ms and 20.00 ms"),
        (True, "10.00 ms and 10.00 ms"),
    ]
    checks = goals.checks(results(*cells(figures(300), figures(100), figures(400))), "enginery", {})
    assert [check.passed for check in checks] == [True, True, True]


def test_at_saturation_the_engines_own_batches_are_the_measure() -> None:
    run = results(*cells(figures(90), figures(10), figures(200), "query-20", 15))
    (share,) = goals.checks(run, "enginery", {})
    assert not share.passed
    same = Cell(scenario="query-20", load=Load(concurrency=15), server="engine alone", figures=figures(100))
    beside = goals.Beside(ours=run.cells[0], alone=same)
    (share,) = goals.checks(run, "enginery", {("query-20", Load(concurrency=15)): beside})
    assert share.passed
    assert share.value == "90% (90.0 of 100.0)"


def test_one_query_may_take_a_little_longer_than_the_engines_call() -> None:
    (ours, _, limit) = cells(figures(1, p50=0.0036), figures(1), figures(1, p50=0.002))
    assert goals.one_query(ours, limit).passed
    assert not goals.one_query(msgspec.structs.replace(ours, figures=figures(1, p50=0.00361)), limit).passed


def test_the_start_has_its_goals() -> None:
    assert [check.passed for check in goals.at_start(2.4, 399e6)] == [True, True]
    assert [check.passed for check in goals.at_start(2.6, 401e6)] == [False, False]
