"""The calls that wait for the engine, oldest first, and how much they are."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import Generic, TypeVar

from serving.batching.tickets import Entry, Ticket

Item = TypeVar("Item")


class Waiting(Generic[Item]):
    """Kept under the batcher's lock; its counts may be read without."""

    def __init__(self) -> None:
        self.tickets: deque[Ticket[Item]] = deque()  # those with items waiting
        self.num_items = self.cost = 0

    def add(self, ticket: Ticket[Item], entries: Sequence[Entry[Item]]) -> None:
        """A call, with all of its items."""
        ticket.waiting.extend(entries)
        self.tickets.append(ticket)
        self._count(len(entries), sum(entry.cost for entry in entries))

    def take(self, entries: Sequence[Entry[Item]], turn: int) -> int:
        """Items that go into a batch -> of how many calls they are. turn: the batch's number."""
        rows: dict[int, tuple[Ticket[Item], set[int]]] = {}
        for entry in entries:
            rows.setdefault(id(entry.ticket), (entry.ticket, set()))[1].add(entry.row)
        for ticket, taken in rows.values():
            ticket.served = turn
            ticket.waiting = deque(entry for entry in ticket.waiting if entry.row not in taken)
        self.tickets = deque(ticket for ticket in self.tickets if ticket.waiting)
        self._count(-len(entries), -sum(entry.cost for entry in entries))
        return len(rows)

    def forget(self, ticket: Ticket[Item]) -> None:
        """Take out what a call still has waiting."""
        if ticket.waiting:
            self._count(-len(ticket.waiting), -sum(entry.cost for entry in ticket.waiting))
            ticket.waiting.clear()
            self.tickets.remove(ticket)

    def _count(self, num_items: int, cost: int) -> None:
        self.num_items += num_items
        self.cost += cost
