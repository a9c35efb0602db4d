"""Choose which waiting items run together so that little is padded: one pure function."""

from __future__ import annotations

from collections.abc import Sequence

MAX_PADDING = 0.15  # of a batch's padded cost; above it, two batches are cheaper than one


def form(
    costs: Sequence[int], *, head: int, max_items: int, max_cost: int, stepped_above: int | None = None
) -> list[int]:
    """Indices of the items to run with item `head`, which is always among them.

    Every item of a batch is padded to its longest, so a batch of n items costs n x the largest. The batch grows from
    the head to its neighbours by length, the nearer first, while it stays within max_items, max_cost and MAX_PADDING.
    A small batch may be padded more: starting the engine costs more than what it pads.

    stepped_above: a batch that leaves items, or costs more than this, holds as many as is_step allows.
    """
    order = sorted(range(len(costs)), key=costs.__getitem__)
    low = high = order.index(head)
    chosen = low, high
    real = costs[head]
    while high - low + 1 < min(max_items, len(order)):
        below = costs[order[low]] - costs[order[low - 1]] if low else None
        above = costs[order[high + 1]] - costs[order[high]] if high + 1 < len(order) else None
        downwards = above is None or (below is not None and below <= above)
        added = order[low - 1] if downwards else order[high + 1]
        longest = max(costs[order[high]], costs[added])
        padded, total = (high - low + 2) * longest, real + costs[added]
        if padded > max_cost or (padded > max_cost // 16 and total < (1 - MAX_PADDING) * padded):
            break
        real = total
        low, high = (low - 1, high) if downwards else (low, high + 1)
        num_items = high - low + 1
        whole = stepped_above is None or (num_items == len(order) and padded <= stepped_above)
        if whole or is_step(num_items):
            chosen = low, high
    low, high = chosen
    return order[low : high + 1]


def is_step(num_items: int) -> bool:
    """1, 2, 3, 4, 6, 8, 12, 16, 24, …: batches of these sizes alone make few shapes, and no batch much smaller."""
    highest = 1 << (num_items.bit_length() - 1)
    return num_items in (highest, highest + highest // 2)
