"""Forming: which waiting items run together so that little is padded."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from serving.batching.forming import MAX_PADDING, form


@given(st.lists(st.integers(1, 512), min_size=1, max_size=80), st.data())
def test_a_formed_batch_holds_its_head_keeps_the_limits_and_pads_little(costs: list[int], data: st.DataObject) -> None:
    head = data.draw(st.integers(0, len(costs) - 1))
    chosen = form(costs, head=head, max_items=16, max_cost=2048)
    assert head in chosen
    assert len(set(chosen)) == len(chosen) <= 16
    padded = len(chosen) * max(costs[n] for n in chosen)
    real = sum(costs[n] for n in chosen)
    assert len(chosen) == 1 or padded <= 2048
    assert len(chosen) == 1 or padded <= 2048 // 16 or real >= (1 - MAX_PADDING) * padded


@given(st.lists(st.integers(1, 512), min_size=1, max_size=80), st.data())
def test_a_stepped_batch_is_the_largest_step_within_the_one_that_takes_any_number(
    costs: list[int], data: st.DataObject
) -> None:
    head = data.draw(st.integers(0, len(costs) - 1))
    free = form(costs, head=head, max_items=64, max_cost=2048)
    stepped = form(costs, head=head, max_items=64, max_cost=2048, stepped_above=0)
    assert head in stepped
    assert set(stepped) <= set(free)
    assert len(stepped) == max(n for n in (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64) if n <= len(free))
