"""What bounds a cell, in words."""

from __future__ import annotations

import pytest

from benchmarks.report import bounds
from benchmarks.report.figures import Figures
from benchmarks.report.results import Cell, Load
from benchmarks.watch.scrape import Inside


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


def cell(load: Load, inside: Inside | None, **more: float) -> Cell:
    return Cell(scenario="s", load=load, server="ours", figures=figures(100.0, **more), inside=inside)


MANY = Load(concurrency=8)


@pytest.mark.parametrize(
    ("measured", "words"),
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
def test_what_bounds_a_load_is_said_in_words(measured: Cell, words: str) -> None:
    assert words in bounds.bound(measured)
    assert bool(words) == bool(bounds.bound(measured))


def test_a_batch_that_takes_longer_than_alone_is_told() -> None:
    same = Cell(scenario="s", load=MANY, server="alone", figures=figures(125.0), shape="4 x 20")
    same.figures.latency_s["p50"] = 0.004
    slow, right = (cell(MANY, Inside(engine_busy=0.9, engine_s=seconds)) for seconds in (0.008, 0.0041))
    assert "A batch takes 8.00 ms, and 4.00 ms where the engine has" in bounds.bound(slow, None, same)
    assert "A batch takes" not in bounds.bound(right, None, same)


def test_the_share_of_the_limit_is_said() -> None:
    limit = Cell(scenario="s", load=MANY, server="alone", figures=figures(125.0), shape="8 x 20")
    assert "80% of the engine's limit (8 x 20)" in bounds.bound(cell(MANY, Inside(engine_busy=0.9)), limit)
