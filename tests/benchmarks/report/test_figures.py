"""Figures: percentiles that were really measured, rates of what was answered, medians over rounds."""

from __future__ import annotations

import pytest

from benchmarks.report import figures
from benchmarks.scenarios.scenarios import SCENARIOS, Requests
from tests.support.recordings import recording

REQUESTS = Requests(
    scenario=SCENARIOS[0],
    texts=(("a",), ("b", "c")),
    queries=(),
    num_items=(1, 2),
    num_tokens=(20, 50),
    longest=30,
)


def test_rates_count_only_what_was_answered_with_200() -> None:
    run = figures.of_run(recording([0, 1, 1, 0], [200, 200, 429, 0], [0.1, 0.3, 9.0, 9.0]), REQUESTS)
    assert run.num_requests == 2
    assert run.requests_per_s == 1.0
    assert run.items_per_s == 1.5
    assert run.tokens_per_s == 35.0
    assert run.latency_s["max"] == 0.3
    assert run.statuses == {"0": 1, "200": 2, "429": 1}
    assert run.generator_cpu_share == pytest.approx(0.05)
    assert run.generator_us_per_request == pytest.approx(25_000)


def test_a_run_without_answers_has_rates_of_zero_and_no_latency() -> None:
    run = figures.of_run(recording([0], [0], [1.0]), REQUESTS)
    assert (run.items_per_s, run.latency_s, run.statuses) == (0.0, {}, {"0": 1})


def test_percentiles_are_values_that_were_measured() -> None:
    seconds = [n / 100 for n in range(1, 101)]
    latency_s = figures.latencies(seconds)
    assert (latency_s["p50"], latency_s["p99"], latency_s["max"]) == (0.51, 1.0, 1.0)
    assert all(latency_s[name] in seconds for name in ("p50", "p90", "p95", "p99"))
    assert figures.latencies([0.1, 0.2])["p99"] == 0.2


def test_medians_are_of_each_figure_by_itself_and_counts_are_summed() -> None:
    runs = [
        figures.of_run(recording([0] * n, [200] * n, [took] * n), REQUESTS)
        for n, took in ((2, 0.3), (8, 0.1), (4, 0.2))
    ]
    medians = figures.median(runs)
    assert medians.requests_per_s == 2.0
    assert medians.latency_s["p50"] == 0.2
    assert medians.num_requests == 14
    assert medians.statuses == {"200": 14}
    assert medians.num_rounds == 3
    assert medians.spread == 1.5


def test_medians_of_nothing_are_refused() -> None:
    with pytest.raises(ValueError, match="no runs"):
        figures.median([])


def test_figures_are_written_with_five_digits() -> None:
    plain = figures.as_json(figures.of_run(recording([0], [200], [0.123456789]), REQUESTS))
    assert plain["latency_s"]["p50"] == 0.12346
    assert plain["num_requests"] == 1
