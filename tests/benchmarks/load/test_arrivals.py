"""When requests of open load are due."""

from __future__ import annotations

import numpy as np
import pytest

from benchmarks.load.arrivals import arrivals
from benchmarks.load.job import Job


def test_random_arrivals_have_the_rate_that_was_asked_and_follow_from_the_seed() -> None:
    job = Job(host="", port=0, requests=(b"",), mode="poisson", rate=1000, seconds=10, seed=1)
    due = arrivals(job)
    assert abs(len(due) - 10_000) < 400
    assert np.diff(due).min() >= 0
    assert np.diff(due).std() == pytest.approx(0.001, rel=0.1)  # of an exponential: its mean
    assert (arrivals(job) == due).all()
