"""Figures: percentiles that were really measured, rates of what was answered, medians over rounds."""

from __future__ import annotations

import pytest

from benchmarks.report import figures
from benchmarks.scenarios.scenarios import SCENARIOS, Requests
from tests.support.outcomes import outcome

REQUESTS = Requests(
    scenario=SCENARIOS[0],
    texts=(("a",), ("b", "c")),
    queries=(),
    num_items=(1, 2),
    num_tokens=(20, 50),
    longest=30,
)


def test_rates_count_only_what_was_answered_with_200() -> None:
    found = figures.of_run(outcome([0, 1, 1, 0], [200, 200, 429, 0], [0.1, 0.3, 9.0, 9.0]), REQUESTS)
    assert found.num_requests == 2
    assert found.requests_per_s == 1.0
    assert found.items_per_s == 1.5
    assert found.tokens_per_s == 35.0
    assert found.latency_s["max"] == 0.3
    assert found.statuses == {"0": 1, "200": 2, "429": 1}
    assert found.generator_cpu_share == pytest.approx(0.05)
    assert found.generator_us_per_request == pytest.approx(25_000)


def test_a_run_without_answers_has_rates_of_zero_and_no_latency() -> None:
    found = figures.of_run(outcome([0], [0], [1.0]), REQUESTS)
    assert (found.items_per_s, found.latency_s, found.statuses) == (0.0, {}, {"0": 1})


def test_percentiles_are_values_that_were_measured() -> None:
    seconds = [n / 100 for n in range(1, 101)]
    found = figures.latencies(seconds)
    assert (found["p50"], found["p99"], found["max"]) == (0.51, 1.0, 1.0)
    assert all(found[name] in seconds for name in ("p50", "p90", "p95", "p99"))
    assert figures.latencies([0.1, 0.2])["p99"] == 0.2


def test_medians_are_of_each_figure_by_itself_and_counts_are_summed() -> None:
    runs = [
        figures.of_run(outcome([0] * n, [200] * n, [took] * n), REQUESTS) for n, took in ((2, 0.3), (8, 0.1), (4, 0.2))
    ]
    found = figures.median(runs)
    assert found.requests_per_s == 2.0
    assert found.latency_s["p50"] == 0.2
    assert found.num_requests == 14
    assert found.statuses == {"200": 14}
    assert found.num_rounds == 3
    assert found.spread == 1.5


def test_medians_of_nothing_are_refused() -> None:
    with pytest.raises(ValueError, match="no runs"):
        figures.median([])


def test_figures_are_written_with_five_digits() -> None:
    found = figures.as_json(figures.of_run(outcome([0], [200], [0.123456789]), REQUESTS))
    assert found["latency_s"]["p50"] == 0.12346
    assert found["num_requests"] == 1
