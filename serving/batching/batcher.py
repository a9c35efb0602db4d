"""Gather items of many requests into batches for a blocking engine: dynamic batching that knows nothing of tasks."""

from __future__ import annotations

import asyncio
import logging
import math
import threading
import time
from collections.abc import Callable, Sequence
from typing import Generic, NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

from serving.batching.forming import form
from serving.batching.gathering import Gathering
from serving.batching.observing import Observer, Ran
from serving.batching.tickets import Draining, Entry, QueueFull, Ticket, tell
from serving.batching.turns import Turns
from serving.batching.waiting import Waiting

log = logging.getLogger(__name__)

Item = TypeVar("Item")
Batch = TypeVar("Batch")
Run = Callable[[Batch], NDArray[np.float32]]

MIN_SHARE = 16  # a batch is not cut smaller than this part of the largest one, so that another stream has one too
FEW_SHARE = 2  # less than this part of a largest batch is few: an idle engine may wait for more, and takes all
WINDOW = 4  # batches' worth of items among which similar lengths are looked for


class _Cut(NamedTuple, Generic[Item, Batch]):
    """What goes into the engine together."""

    entries: list[Entry[Item]]
    num_calls: int  # of which they are
    run: Run[Batch]
    num_streams: int  # that it takes


class Batcher(Generic[Item, Batch]):
    """Submit items from one event loop; threads cut batches whenever the engine is free, or just after: see Gathering.

    One thread more than there are streams: when a full batch waits, it is cut and prepared while the engine still
    runs. A batch that is not full is cut only when the engine is free, so that late arrivals still join it.
    Which calls it cuts from: see Turns. While all calls together are few, one batch after another runs alone, where the
    engine can then give it all cores: streams beside each other would each take twice as long.
    """

    def __init__(
        self,
        *,
        prepare: Callable[[list[Item]], Batch],
        run: Run[Batch],
        run_alone: Run[Batch] | None = None,
        cost: Callable[[Item], int],
        size: Callable[[Item], int] | None = None,
        max_batch_items: int,
        max_batch_cost: int,
        max_queue_items: int,
        num_streams: int = 1,
        stepped: bool = False,
        observer: Observer | None = None,
    ) -> None:
        """run_alone: for a batch that nothing runs beside. None: such a batch gains nothing.

        cost: of an item in a batch of its own, which may be rounded up. size: of it what is not padding.

        stepped: the engine prepares itself for each shape, so batches come in few sizes; the rest waits for the next.
        """
        self._prepare, self._run, self._run_alone = prepare, run, run_alone
        self._cost, self._size = cost, size or cost
        self._max_items, self._max_cost, self._max_queue = max_batch_items, max_batch_cost, max_queue_items
        self._observer = observer
        if observer is not None:
            observer.watch_queue(lambda: self._waiting.num_items)
        self._lock = threading.RLock()
        self._may_be_cut = threading.Condition(self._lock)  # a thread with nothing to do waits for it
        self._enough = threading.Condition(self._lock)  # the thread that gathers waits for it
        self._engine_free = threading.Condition(self._lock)  # a thread with a prepared batch waits for it
        self._waiting = Waiting[Item]()
        self._turn = 0  # batches cut so far
        self._turns = Turns[Item](max_cost=max_batch_cost)
        self._num_taken = self._num_ended = 0  # tickets that were queued, and those whose calls are over
        self._num_running = self._running_cost = 0  # tickets with items in the engine, and the cost of these
        self._num_streams = self._num_free = num_streams
        self._num_prepared = 0
        self._seconds_per_cost = 0.0
        self._draining = self._stopped = self._is_gathering = False
        self._few = max_batch_cost // FEW_SHARE
        self._stepped_above = self._few if stepped else None
        self._gathering = Gathering(little=max_batch_cost // MIN_SHARE, few=self._few)
        self._threads = [
            threading.Thread(target=self._work, name=f"batcher-{n}", daemon=True) for n in range(num_streams + 1)
        ]
        for thread in self._threads:
            thread.start()

    def refuse_if_full(self, num_items: int) -> None:
        """Raise QueueFull or Draining if submit would: ask before spending work on the items.

        Without the lock: a batcher thread that holds it may wait for a core, and the event loop must not wait for that.
        """
        if self._draining:
            raise Draining("the server is shutting down")
        num_queued = self._waiting.num_items
        # An idle server takes any request: one that is larger than the queue could never be served otherwise.
        if num_queued and num_queued + num_items > self._max_queue:
            seconds = self._waiting.cost * self._seconds_per_cost
            raise QueueFull(
                num_queued=num_queued, limit=self._max_queue, retry_after_s=min(60, max(1, math.ceil(seconds)))
            )

    async def submit(self, items: Sequence[Item]) -> NDArray[np.float32]:
        """N >= 1 items -> (N, D), in their order. Raises QueueFull, Draining, or what prepare or run raised.

        Cancelling the call takes its items out of the queue.
        """
        ticket = Ticket[Item].here()
        self.put(ticket, items)
        return await self.answer(ticket)

    def put(self, ticket: Ticket[Item], items: Sequence[Item]) -> None:
        """Queue a ticket's N >= 1 items, from any thread. Raises QueueFull and Draining."""
        entries = [Entry(ticket=ticket, row=n, item=item, cost=self._cost(item)) for n, item in enumerate(items)]
        with self._lock:
            if ticket.left:
                return
            self.refuse_if_full(len(items))
            ticket.queued, ticket.since = True, time.monotonic()
            ticket.num_items = ticket.num_missing = len(items)
            self._waiting.add(ticket, entries)
            self._num_taken += 1
            if self._is_gathering:
                if self._gathering.enough(len(self._waiting.tickets), self._waiting.cost):
                    self._enough.notify()
            elif self._may_cut():  # otherwise nobody could use it yet, and waking a thread is not free
                self._may_be_cut.notify()

    async def answer(self, ticket: Ticket[Item]) -> NDArray[np.float32]:
        """Wait for a ticket that is queued now or later. Cancelling the call takes its items out of the queue."""
        try:
            return await ticket.future
        finally:
            if not ticket.queued or ticket.num_missing:  # the caller gave up, or a batch failed
                with self._lock:
                    ticket.left = True
                    self._waiting.forget(ticket)
            self._num_ended += ticket.queued

    async def drain(self, deadline_s: float) -> bool:
        """Take no more, finish what was taken, stop the threads. False: the deadline came first and the rest failed."""
        with self._lock:
            self._draining = True
        deadline = time.monotonic() + deadline_s
        while self._num_taken > self._num_ended and time.monotonic() < deadline:
            await asyncio.sleep(0.01)
        finished = self._num_taken == self._num_ended
        with self._lock:
            self._stopped = True
            for ticket in list(self._waiting.tickets):
                self._fail(ticket, Draining("the server stopped before this request was run"))
            self._may_be_cut.notify_all()
            self._enough.notify()
        return finished

    def _work(self) -> None:
        while True:
            with self._lock:
                self._may_be_cut.wait_for(lambda: self._stopped or (self._may_cut() and not self._is_gathering))
                self._gather()
                if self._stopped:
                    return
                if not self._may_cut():  # who waited has left
                    continue
                cut = self._cut()
                self._num_prepared += 1
            self._run_batch(cut)

    def _may_cut(self) -> bool:
        if not self._waiting.num_items or self._num_prepared:
            return False
        if self._are_few():
            return self._num_free == self._num_streams
        full = self._waiting.num_items >= self._max_items or self._waiting.cost >= self._max_cost
        return self._num_free > 0 or full

    def _are_few(self) -> bool:
        """Whether all that waits and runs is little enough to run alone."""
        return self._run_alone is not None and self._waiting.cost + self._running_cost <= self._few

    def _gather(self) -> None:
        """Wait for more where more is about to come."""

        def waits() -> tuple[int, int]:
            return len(self._waiting.tickets), self._waiting.cost

        now = time.monotonic()
        until = self._gathering.begin(now, *waits(), idle=self._num_free == self._num_streams)
        while until > now and not self._stopped:
            self._is_gathering = True
            self._enough.wait_for(lambda: self._stopped or self._gathering.enough(*waits()), until - now)
            self._is_gathering = False
            now = time.monotonic()
            until = self._gathering.further(now, *waits())

    def _cut(self) -> _Cut[Item, Batch]:
        """Take the next batch out of the queue."""
        self._turn += 1
        alone = self._run_alone if self._are_few() else None
        window = self._turns.window(self._waiting.tickets, WINDOW * self._max_items)
        costs = [entry.cost for entry in window]
        # What waits is shared by the streams that are free: one batch for one of them would leave the others idle.
        share = -(-self._waiting.cost // self._num_free) if self._num_free > 1 and not alone else self._max_cost
        max_cost = min(self._max_cost, max(share, self._max_cost // MIN_SHARE))
        formed = form(costs, head=0, max_items=self._max_items, max_cost=max_cost, stepped_above=self._stepped_above)
        chosen = [window[n] for n in formed]
        self._turns.spend(len(chosen) * max(entry.cost for entry in chosen))
        num_calls = self._waiting.take(chosen, self._turn)
        self._gathering.cut(len(self._waiting.tickets) + num_calls + self._num_running)
        return _Cut(chosen, num_calls, alone or self._run, self._num_streams if alone else 1)

    def _run_batch(self, cut: _Cut[Item, Batch]) -> None:
        """Prepare while the engine may still run another batch, wait for it, run, hand out the rows."""
        entries = cut.entries
        try:
            batch = self._prepared(cut)
            started = time.monotonic()
            try:
                output = cut.run(batch)
            finally:  # before the rows are handed out: the next batch may run meanwhile
                seconds = time.monotonic() - started
                self._leave_engine(cut, seconds)
            if output.ndim != 2 or len(output) != len(entries):
                raise ValueError(f"the engine gave {output.shape} for a batch of {len(entries)} items")
        except Exception as error:
            log.exception("a batch of %d items failed", len(entries))
            with self._lock:
                for entry in entries:
                    self._fail(entry.ticket, error)
        else:
            self._hand_out(entries, output)
            self._observe(cut, started, seconds)  # after the rows: the loop needs the interpreter to answer them

    def _prepared(self, cut: _Cut[Item, Batch]) -> Batch:
        """The batch, when the engine is this thread's to run it."""
        try:
            batch = self._prepare([entry.item for entry in cut.entries])
            with self._lock:
                self._engine_free.wait_for(lambda: self._num_free >= cut.num_streams)
                self._num_free -= cut.num_streams
                self._num_running += cut.num_calls
                self._running_cost += sum(entry.cost for entry in cut.entries)
            return batch
        finally:
            with self._lock:
                self._num_prepared -= 1
                if self._may_cut():
                    self._may_be_cut.notify()

    def _leave_engine(self, cut: _Cut[Item, Batch], seconds: float) -> None:
        with self._lock:
            self._num_running -= cut.num_calls
            self._running_cost -= sum(entry.cost for entry in cut.entries)
            self._gathering.ended(time.monotonic(), seconds)
            self._num_free += cut.num_streams
            if self._num_prepared:
                self._engine_free.notify()
            elif self._may_cut():
                self._may_be_cut.notify()

    def _hand_out(self, entries: list[Entry[Item]], output: NDArray[np.float32]) -> None:
        with self._lock:
            tell([e.ticket for n, e in enumerate(entries) if e.ticket.take(e.row, output[n : n + 1])])

    def _observe(self, cut: _Cut[Item, Batch], started: float, seconds: float) -> None:
        entries = cut.entries
        costs = [entry.cost for entry in entries]
        padded = len(entries) * max(costs)
        log.debug("batch of %d x %d, %.1f ms", len(entries), max(costs), 1e3 * seconds)
        recent = seconds / max(1, padded)
        self._seconds_per_cost = 0.8 * self._seconds_per_cost + 0.2 * recent if self._seconds_per_cost else recent
        if self._observer is not None:
            waited = [max(0.0, started - entry.ticket.since) for entry in entries]
            sizes = sum(self._size(entry.item) for entry in entries)
            share = cut.num_streams / self._num_streams
            self._observer.ran(Ran(len(entries), sizes, padded, seconds, share, waited))

    def _fail(self, ticket: Ticket[Item], error: Exception) -> None:
        self._waiting.forget(ticket)
        ticket.error = error
        tell([ticket])
