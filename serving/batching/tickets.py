"""One call that waits for the engine: its items, its rows as they come, how its answer reaches the event loop."""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Generic, TypeVar

import numpy as np
from numpy.typing import NDArray

Item = TypeVar("Item")


class QueueFull(Exception):
    """More items wait than may; try again after retry_after_s."""

    def __init__(self, *, num_queued: int, limit: int, retry_after_s: int) -> None:
        self.retry_after_s = retry_after_s
        super().__init__(f"{num_queued} items wait, at most {limit} may; try again in {retry_after_s} s")


class Draining(Exception):
    """The batcher is shutting down and takes, or finishes, nothing more."""


@dataclass(kw_only=True, eq=False, slots=True)
class Ticket(Generic[Item]):
    """Made in the event loop that awaits its future; filled by the batcher's threads, under the batcher's lock."""

    loop: asyncio.AbstractEventLoop
    future: asyncio.Future[NDArray[np.float32]]  # (N, D)
    left: bool = False  # nobody waits any more
    queued: bool = False
    since: float = 0.0  # when it was queued, time.monotonic()
    waiting: deque[Entry[Item]] = field(default_factory=deque)
    num_items: int = 0
    num_missing: int = 0
    served: int = 0  # the last turn that took an item of it
    output: NDArray[np.float32] | None = None
    error: Exception | None = None

    @classmethod
    def here(cls) -> Ticket[Item]:
        """One for the running loop."""
        loop = asyncio.get_running_loop()
        return cls(loop=loop, future=loop.create_future())

    def take(self, row: int, values: NDArray[np.float32]) -> bool:
        """One row of the answer, (1, D). True: it was the last."""
        if self.num_items == 1:
            self.output = values
        else:
            if self.output is None:
                self.output = np.empty((self.num_items, values.shape[1]), dtype=np.float32)
            self.output[row] = values
        self.num_missing -= 1
        return self.num_missing == 0


@dataclass(kw_only=True, eq=False, slots=True)
class Entry(Generic[Item]):
    """One item of a ticket."""

    ticket: Ticket[Item]
    row: int
    item: Item
    cost: int


def tell(tickets: Sequence[Ticket[Item]]) -> None:
    """Give the waiting calls their answers, from any thread. One call into the loop for all: each would wake it."""
    if tickets:
        with contextlib.suppress(RuntimeError):  # a loop that has closed has nobody waiting
            tickets[0].loop.call_soon_threadsafe(_give, tickets)


def _give(tickets: Sequence[Ticket[Item]]) -> None:
    for ticket in tickets:
        if ticket.future.done():  # cancelled, or failed by another of its batches
            continue
        if ticket.error is not None:
            ticket.future.set_exception(ticket.error)
        else:
            assert ticket.output is not None  # all of its rows are there
            ticket.future.set_result(ticket.output)
