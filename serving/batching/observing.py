"""What a batcher tells of its queue and its batches, and to whom."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple, Protocol


class Ran(NamedTuple):
    """One batch that ran."""

    num_items: int
    cost: int  # what is not padding
    padded_cost: int
    seconds: float
    share: float  # of the engine: 1 when nothing ran beside it, else its stream's
    waited_s: Sequence[float]  # each item's time in the queue


class Observer(Protocol):
    """Who wants to know; called from the batcher's threads."""

    def watch_queue(self, num_queued: Callable[[], int]) -> None:
        """How to ask, at any time, how many items wait."""

    def ran(self, batch: Ran) -> None:
        """After its rows have been handed out."""
