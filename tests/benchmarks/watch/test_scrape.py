"""What a server and its process tell: metrics between two readings, memory, CPU by thread, and the words for it."""

from __future__ import annotations

import os
import threading
import time
from pathlib import Path

import pytest

from benchmarks.report import bounds
from benchmarks.report.figures import Figures
from benchmarks.report.results import Cell, Load
from benchmarks.watch import procfs, scrape
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
    found = scrape.between(scrape.parse(BEFORE), scrape.parse(AFTER), 2.0, {"main": 0.5, "engine": 1.0})
    assert found.engine_busy == pytest.approx(0.75)
    assert found.engine_s == pytest.approx(0.15)
    assert found.batch_items == pytest.approx(5.0)
    assert found.batch_tokens == pytest.approx(80.0)
    assert found.padding_waste == pytest.approx(0.2)
    assert found.queue_s == pytest.approx(0.002)
    assert found.request_s == pytest.approx(0.1)
    assert found.cpu == pytest.approx(1.5)


def test_the_busy_share_is_of_a_stream_where_several_run_at_once() -> None:
    told = scrape.between(
        scrape.parse(BEFORE + 'engine_busy_seconds_total{tower="model"} 0.25\n'),
        scrape.parse(AFTER + 'engine_busy_seconds_total{tower="model"} 1.0\n'),
        *(1.0, {}),
    )
    assert (told.engine_busy, told.engine_streams) == (pytest.approx(0.75), pytest.approx(2.0))
    assert scrape.between(scrape.parse(BEFORE), scrape.parse(AFTER), 1.0, {}).engine_busy == pytest.approx(0.75)
    assert scrape.between(scrape.parse(BEFORE), scrape.parse(AFTER), 1.5, {}).engine_busy == pytest.approx(1.0)


def test_a_server_without_metrics_tells_nothing() -> None:
    found = scrape.between({}, {}, 2.0, {})
    assert found == Inside()


def test_medians_pass_over_rounds_that_tell_nothing() -> None:
    rounds = [Inside(queue_s=1.0, cpu_by_thread={"a": 0.1}), Inside(), Inside(queue_s=3.0, cpu_by_thread={"a": 0.5})]
    found = scrape.median(rounds)
    assert found.queue_s == 2.0
    assert found.cpu_by_thread == {"a": 0.1}
    assert found.engine_busy is None


def test_memory_and_cpu_time_of_a_real_process_are_read() -> None:
    memory = procfs.memory(os.getpid())
    assert 0 < memory.anonymous <= memory.resident <= memory.peak
    before = procfs.cpu_seconds(os.getpid())
    until = time.process_time() + 0.05
    while time.process_time() < until:
        pass
    assert procfs.cpu_seconds(os.getpid()) > before


def test_threads_of_a_real_process_are_told_apart() -> None:
    stop = threading.Event()
    other = threading.Thread(target=stop.wait)
    other.start()
    found = procfs.threads(os.getpid())
    stop.set()
    other.join()
    assert {os.getpid(), other.native_id} <= set(found)


def test_a_process_that_has_ended_raises(tmp_path: Path) -> None:
    with pytest.raises(OSError):
        procfs.memory(2**22 + 1)


def test_shares_of_pools_count_together_and_the_first_thread_is_main() -> None:
    before = {7: ("python", 1.0), 8: ("encoder-0", 0.0), 9: ("encoder-1", 0.0)}
    after = {7: ("python", 2.0), 8: ("encoder-0", 0.5), 9: ("encoder-1", 1.0), 10: ("batcher_0", 0.25)}
    assert procfs.shares(7, before, after, 2.0) == {"encoder": 0.75, "main": 0.5, "batcher": 0.125}


def test_a_name_with_brackets_and_spaces_is_read(tmp_path: Path) -> None:
    folder = tmp_path / "5" / "task" / "5"
    folder.mkdir(parents=True)
    (folder / "stat").write_text("5 (a) b (c) R 1 2 3 4 5 6 7 8 9 10 100 50 0 0 20 0 1 0 0 0 0")
    ticks = os.sysconf("SC_CLK_TCK")
    assert procfs.threads(5, tmp_path) == {5: ("a) b (c", 150 / ticks)}


def figures(items_per_s: float, mean_s: float = 0.0, generator: float = 0.1) -> Figures:
    return Figures(
        num_requests=1,
        requests_per_s=items_per_s,
        items_per_s=items_per_s,
        tokens_per_s=0.0,
        latency_s={"mean": mean_s},
        statuses={"200": 1},
        num_wrong=0,
        wall_s=1.0,
        generator_cpu_share=generator,
        generator_us_per_request=1.0,
        lag_p99_s=0.0,
    )


def cell(load: Load, inside: Inside | None, **how: float) -> Cell:
    return Cell(scenario="s", load=load, server="ours", figures=figures(100.0, **how), inside=inside)


MANY = Load(concurrency=8)


@pytest.mark.parametrize(
    ("measured", "says"),
    [
        (cell(MANY, Inside(engine_busy=0.95, padding_waste=0.2)), "The engine: busy 95% of the time, 20% of its work"),
        (cell(MANY, Inside(engine_busy=0.95, padding_waste=0.02)), "The engine: busy 95% of the time."),
        (cell(MANY, Inside(engine_busy=0.4, cpu_by_thread={"main": 0.9})), "The event loop: 90% of a core"),
        (cell(MANY, Inside(engine_busy=0.4, cpu_by_thread={"main": 0.3})), "The engine is busy 40%; the rest is"),
        (cell(MANY, Inside(engine_busy=0.4), generator=0.9), "The load generator"),
        (cell(Load(mode="open", rate=5), Inside(engine_busy=0.4)), "Nothing: the load is below capacity"),
        (
            cell(
                Load(concurrency=1),
                Inside(engine_busy=0.5, engine_s=0.002, queue_s=0.0005, request_s=0.003),
                mean_s=0.004,
            ),
            "of 4.00 ms, the engine 2.00 ms, waiting for it 0.50 ms, the rest of the server 0.50 ms, "
            "HTTP and the client 1.00 ms",
        ),
        (cell(MANY, None), ""),
        (cell(MANY, Inside()), ""),
    ],
)
def test_what_bounds_a_load_is_said_in_words(measured: Cell, says: str) -> None:
    assert says in bounds.bound(measured)
    assert bool(says) == bool(bounds.bound(measured))


def test_a_batch_that_takes_longer_than_alone_is_told() -> None:
    same = Cell(scenario="s", load=MANY, server="alone", figures=figures(125.0), shape="4 x 20")
    same.figures.latency_s["p50"] = 0.004
    slow, right = (cell(MANY, Inside(engine_busy=0.9, engine_s=seconds)) for seconds in (0.008, 0.0041))
    assert "A batch takes 8.00 ms, and 4.00 ms where the engine has" in bounds.bound(slow, None, same)
    assert "A batch takes" not in bounds.bound(right, None, same)


def test_the_share_of_the_limit_is_said() -> None:
    limit = Cell(scenario="s", load=MANY, server="alone", figures=figures(125.0), shape="8 x 20")
    assert "80% of the engine's limit (8 x 20)" in bounds.bound(cell(MANY, Inside(engine_busy=0.9)), limit)
