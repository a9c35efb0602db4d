"""The difference of two readings of /v1/metrics, and its medians over rounds."""

from __future__ import annotations

import pytest

from benchmarks.watch import scrape
from benchmarks.watch.scrape import Inside

BEFORE = """# HELP batch_size Items of one batch.
batch_size_bucket{le="1.0",tower="model"} 1.0
batch_size_sum{tower="model"} 10.0
batch_size_count{tower="model"} 2.0
batch_seconds_sum{tower="model"} 0.5
batch_seconds_count{tower="model"} 2.0
"""
AFTER = """batch_size_bucket{le="1.0",tower="model"} 1.0
batch_size_sum{tower="model"} 60.0
batch_size_count{tower="model"} 12.0
batch_seconds_sum{tower="model"} 2.0
batch_seconds_count{tower="model"} 12.0
batch_tokens_sum{tower="model"} 800.0
batch_tokens_count{tower="model"} 10.0
padded_tokens_total{tower="model"} 1000.0
queue_time_seconds_sum{tower="model"} 1e-1
queue_time_seconds_count{tower="model"} 50.0
e2e_request_latency_seconds_sum{route="/v1/embeddings"} 3.0
e2e_request_latency_seconds_sum{route="/v1/metrics"} 0.0
e2e_request_latency_seconds_count{route="/v1/embeddings"} 30.0
"""


def test_metrics_between_two_readings_are_means_of_what_happened_meanwhile() -> None:
    inside = scrape.between(scrape.parse(BEFORE), scrape.parse(AFTER), 2.0, {"main": 0.5, "engine": 1.0})
    assert inside.engine_busy == pytest.approx(0.75)
    assert inside.engine_s == pytest.approx(0.15)
    assert inside.batch_items == pytest.approx(5.0)
    assert inside.batch_tokens == pytest.approx(80.0)
    assert inside.padding_waste == pytest.approx(0.2)
    assert inside.queue_s == pytest.approx(0.002)
    assert inside.request_s == pytest.approx(0.1)
    assert inside.cpu == pytest.approx(1.5)


def test_the_busy_share_is_of_a_stream_where_several_run_at_once() -> None:
    inside = scrape.between(
        scrape.parse(BEFORE + 'engine_busy_seconds_total{tower="model"} 0.25\n'),
        scrape.parse(AFTER + 'engine_busy_seconds_total{tower="model"} 1.0\n'),
        *(1.0, {}),
    )
    assert (inside.engine_busy, inside.engine_streams) == (pytest.approx(0.75), pytest.approx(2.0))
    assert scrape.between(scrape.parse(BEFORE), scrape.parse(AFTER), 1.0, {}).engine_busy == pytest.approx(0.75)
    assert scrape.between(scrape.parse(BEFORE), scrape.parse(AFTER), 1.5, {}).engine_busy == pytest.approx(1.0)


def test_a_server_without_metrics_tells_nothing() -> None:
    inside = scrape.between({}, {}, 2.0, {})
    assert inside == Inside()


def test_medians_pass_over_rounds_that_tell_nothing() -> None:
    rounds = [Inside(queue_s=1.0, cpu_by_thread={"a": 0.1}), Inside(), Inside(queue_s=3.0, cpu_by_thread={"a": 0.5})]
    inside = scrape.median(rounds)
    assert inside.queue_s == 2.0
    assert inside.cpu_by_thread == {"a": 0.1}
    assert inside.engine_busy is None


def test_samples_whose_label_holds_a_brace_count_too() -> None:
    text = """requests_total{route="/v1/models/{name}"} 2.0
requests_total{route="/v1/\\"}\\""} 3.0
"""
    assert scrape.parse(text) == {"requests_total": 5.0}


def test_text_that_is_no_metrics_is_refused() -> None:
    with pytest.raises(ValueError):
        scrape.parse("<html>a page</html>\n")
