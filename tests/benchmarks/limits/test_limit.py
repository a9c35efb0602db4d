"""The limit: shapes that a load can fill, and rates of all that runs at once."""

from __future__ import annotations

import numpy as np
import pytest

from benchmarks.limits import limit
from benchmarks.limits.shapes import uniform
from benchmarks.report.results import Load
from benchmarks.scenarios import scenarios


def test_shapes_of_the_limit_hold_no_more_than_the_load_has_under_way() -> None:
    (scenario,) = scenarios.by_name(["query-20"])
    requests = scenarios.Requests(
        scenario=scenario, texts=(), queries=(), num_items=(), num_tokens=(), longest=20, lengths=(20,)
    )
    (of_load,) = limit.of_scenario(requests, [Load(concurrency=3)], None, max_items=64, num_cores=2)  # type: ignore[arg-type]
    assert [shape.words for shape in of_load.shapes] == ["1 x 20", "2 x 20", "3 x 20", "2 at once of 1 x 20"]
    (capped,) = limit.of_scenario(requests, [Load(concurrency=15)], None, max_items=8, num_cores=2)  # type: ignore[arg-type]
    assert max(shape.num_items for shape in capped.shapes) == 8


def test_rates_of_the_limit_are_of_all_that_runs_at_once() -> None:
    seconds = np.array([[0.1], [0.1], [0.4]])
    assert limit.rate(seconds, uniform(5, 20)) == pytest.approx(50)
    assert limit.rate(seconds, uniform(5, 20, 2)) == pytest.approx(100)
    assert limit.of_times(seconds, uniform(5, 20, 2)).items_per_s == pytest.approx(100)
