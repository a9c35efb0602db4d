"""Whose turn it is: from which waiting calls the next batch is formed."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain, islice
from typing import Generic, TypeVar

from serving.batching.tickets import Entry, Ticket

Item = TypeVar("Item")


class Turns(Generic[Item]):
    """Half of the engine's time goes to the oldest calls, half to those served least recently.

    The oldest are taken whole: calls that are all half done would all be late. Of the others each has an item in turn,
    so that a large call does not block small ones.
    """

    def __init__(self, *, max_cost: int) -> None:
        """max_cost: of a batch."""
        self._max_cost = max_cost
        self._ahead = 0  # the cost of batches that began with the least recently served, less that of the others
        self._oldest = False  # whose turn it is

    def window(self, tickets: Sequence[Ticket[Item]], size: int) -> list[Entry[Item]]:
        """About `size` waiting items to form a batch of, that which it must hold first. tickets: the oldest first.

        A call that was never served goes first unless that half is a whole batch ahead: it need not be late for a batch
        that its half had when it was not there yet.
        """
        new = any(not ticket.served for ticket in tickets)
        self._oldest = self._ahead > (self._max_cost if new else 0)
        if self._oldest:
            return list(islice(chain.from_iterable(ticket.waiting for ticket in tickets), size))
        # Of those served least recently the smallest, of these the oldest: sorting is stable.
        tickets = sorted(tickets, key=lambda ticket: (ticket.served, len(ticket.waiting)))[:size]
        return _in_turn([ticket.waiting for ticket in tickets], size)

    def spend(self, cost: int) -> None:
        """What the batch formed from that window costs."""
        self._ahead += -cost if self._oldest else cost


def _in_turn(queues: Sequence[Sequence[Entry[Item]]], size: int) -> list[Entry[Item]]:
    """The first of each, then the second of each, and so on, until there are `size` or more."""
    entries: list[Entry[Item]] = []
    depth = 0
    while queues and len(entries) < size:
        entries += [waiting[depth] for waiting in queues]
        depth += 1
        queues = [waiting for waiting in queues if len(waiting) > depth]
    return entries
