"""Engines are timed in turn."""

from __future__ import annotations

from pipelines.measure import speed


def test_engines_take_turns_so_that_a_busy_machine_slows_all_alike():
    order: list[str] = []
    calls = {name: (lambda _, name=name: order.append(name)) for name in "ab"}
    medians = speed.interleaved(calls, {}, 3)
    assert order == ["a", "b"] * (3 + speed.WARM_UP_ROUNDS)
    assert medians.keys() == {"a", "b"}
