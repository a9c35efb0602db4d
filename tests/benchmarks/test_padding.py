"""What a plain FIFO pads."""

from __future__ import annotations

import pytest

from benchmarks import padding


def test_a_fifo_pads_what_sorting_does_not() -> None:
    lengths = [10, 500] * 50
    assert padding.fifo_waste(lengths, 10) == pytest.approx(1 - 255 / 500)
    assert padding.fifo_waste(sorted(lengths), 10) == 0.0
    assert padding.fifo_waste([], 4) == 0.0
