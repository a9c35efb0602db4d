"""Which batch runs next, and when: what waits, what runs, and the rule between them. Knows no thread and no engine."""

from __future__ import annotations

from typing import Generic, NamedTuple, TypeVar

from serving.batching.forming import form
from serving.batching.gathering import Gathering
from serving.batching.tickets import Entry
from serving.batching.turns import Turns
from serving.batching.waiting import Waiting

Item = TypeVar("Item")

MIN_SHARE = 16  # a batch is not cut smaller than this part of the largest one, so that another stream has one too
FEW_SHARE = 2  # less than this part of a largest batch is few: an idle engine may wait for more, and takes all
WINDOW = 4  # batches' worth of items among which similar lengths are looked for


class Cut(NamedTuple, Generic[Item]):
    """What goes into the engine together."""

    entries: list[Entry[Item]]
    num_calls: int  # of which they are
    cost: int  # without padding to the longest
    alone: bool  # nothing runs beside it
    num_streams: int  # that it takes


class Schedule(Generic[Item]):
    """Kept under the batcher's lock; its counts may be read without.

    A batch that is not full is cut only when the engine is free, so that late arrivals still join it; a full one when
    none is prepared. Which calls it is cut from: see Turns. How long an idle engine waits for more: see Gathering.
    While all calls together are few, one batch after another runs alone, where the engine can then give it all cores:
    streams beside each other would each take twice as long.
    """

    def __init__(self, *, max_items: int, max_cost: int, num_streams: int, lends_all: bool, stepped: bool) -> None:
        """max_items, max_cost: of a batch. lends_all: a batch that runs alone gains by it. stepped: see Batcher."""
        self.waiting = Waiting[Item]()
        self.num_streams = self.num_free = num_streams
        self.num_prepared = 0
        self.num_running = self._running_cost = 0  # calls with items in the engine, and the cost of these
        self._max_items, self._max_cost, self._lends_all = max_items, max_cost, lends_all
        self._turn = 0  # batches cut so far
        self._turns = Turns[Item](max_cost=max_cost)
        self._few = max_cost // FEW_SHARE
        self._stepped_above = self._few if stepped else None
        self._gathering = Gathering(little=max_cost // MIN_SHARE, few=self._few)

    def may_cut(self) -> bool:
        """Whether a batch may be cut now."""
        if not self.waiting.num_items or self.num_prepared:
            return False
        if self._are_few():
            return self.num_free == self.num_streams
        full = self.waiting.num_items >= self._max_items or self.waiting.cost >= self._max_cost
        return self.num_free > 0 or full

    def begin_wait(self, now: float) -> float:
        """Until when to wait for more before a batch is cut. No later than now: not at all."""
        idle = self.num_free == self.num_streams
        return self._gathering.begin(now, len(self.waiting.tickets), self.waiting.cost, idle=idle)

    def go_on_waiting(self, now: float) -> float:
        """The same when that time has come, or enough has."""
        return self._gathering.further(now, len(self.waiting.tickets), self.waiting.cost)

    def is_enough(self) -> bool:
        """Whether what waits ends the wait."""
        return self._gathering.enough(len(self.waiting.tickets), self.waiting.cost)

    def cut(self) -> Cut[Item]:
        """Take the next batch out of what waits; it is to be prepared."""
        self._turn += 1
        alone = self._are_few()
        window = self._turns.window(self.waiting.tickets, WINDOW * self._max_items)
        costs = [entry.cost for entry in window]
        # What waits is shared by the streams that are free: one batch for one of them would leave the others idle.
        share = -(-self.waiting.cost // self.num_free) if self.num_free > 1 and not alone else self._max_cost
        max_cost = min(self._max_cost, max(share, self._max_cost // MIN_SHARE))
        rows = form(costs, head=0, max_items=self._max_items, max_cost=max_cost, stepped_above=self._stepped_above)
        entries = [window[row] for row in rows]
        self._turns.spend(len(entries) * max(entry.cost for entry in entries))
        num_calls = self.waiting.take(entries, self._turn)
        self._gathering.cut(len(self.waiting.tickets) + num_calls + self.num_running)
        self.num_prepared += 1
        cost = sum(entry.cost for entry in entries)
        return Cut(entries, num_calls, cost, alone, self.num_streams if alone else 1)

    def enter_engine(self, cut: Cut[Item]) -> None:
        """The batch runs from now on. Its streams are free."""
        self.num_free -= cut.num_streams
        self.num_running += cut.num_calls
        self._running_cost += cut.cost

    def leave_engine(self, cut: Cut[Item], now: float, seconds: float) -> None:
        """It has run, for so long."""
        self.num_running -= cut.num_calls
        self._running_cost -= cut.cost
        self._gathering.ended(now, seconds)
        self.num_free += cut.num_streams

    def _are_few(self) -> bool:
        """Whether all that waits and runs is little enough to run alone."""
        return self._lends_all and self.waiting.cost + self._running_cost <= self._few
