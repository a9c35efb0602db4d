"""Batches of the runner: each text in one, none beyond the limits."""

from __future__ import annotations

import numpy as np
import pytest

from pipelines.measure import runner
from tests.support.profiles import Tiny, make_tiny


@pytest.fixture(scope="module")
def tiny() -> Tiny:
    return make_tiny(0)


def test_every_text_is_in_one_batch_and_no_batch_is_beyond_the_limits(tiny: Tiny):
    lengths = [int(n) for n in np.random.default_rng(0).integers(1, 4000, 200)]
    groups = list(runner.batches(lengths, tiny.spec.shapes.max[0]))
    assert sorted(index for group in groups for index in group) == list(range(200))
    for group in groups:
        assert len(group) <= tiny.spec.shapes.max[0]
        assert len(group) == 1 or len(group) * max(lengths[i] for i in group) <= runner.MAX_BATCH_COST
