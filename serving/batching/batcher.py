"""Gather items of many requests into batches for a blocking engine: dynamic batching that knows nothing of tasks."""

from __future__ import annotations

import asyncio
import logging
import math
import threading
import time
from collections.abc import Callable, Sequence
from typing import Generic, TypeVar

import numpy as np
from numpy.typing import NDArray

from serving.batching.observing import Observer, Ran
from serving.batching.schedule import Cut, Schedule
from serving.batching.tickets import Draining, Entry, QueueFull, Ticket, tell

log = logging.getLogger(__name__)

Item = TypeVar("Item")
Batch = TypeVar("Batch")
Run = Callable[[Batch], NDArray[np.float32]]


class Batcher(Generic[Item, Batch]):
    """Submit items from one event loop; threads cut batches as the schedule allows, and run them.

    One thread more than there are streams: when a full batch waits, it is cut and prepared while the engine still
    runs.
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
        self._prepare, self._run, self._run_alone = prepare, run, run_alone or run
        self._cost, self._size = cost, size or cost
        self._max_queue = max_queue_items
        self._schedule = Schedule[Item](
            max_items=max_batch_items,
            max_cost=max_batch_cost,
            num_streams=num_streams,
            lends_all=run_alone is not None,
            stepped=stepped,
        )
        self._waiting = self._schedule.waiting
        self._observer = observer
        if observer is not None:
            observer.watch_queue(lambda: self._waiting.num_items)
        self._lock = threading.RLock()
        self._may_be_cut = threading.Condition(self._lock)  # a thread with nothing to do waits for it
        self._enough = threading.Condition(self._lock)  # the thread that gathers waits for it
        self._engine_free = threading.Condition(self._lock)  # a thread with a prepared batch waits for it
        self._num_taken = self._num_ended = 0  # tickets that were queued, and those whose calls are over
        self._seconds_per_cost = 0.0
        self._draining = self._stopped = self._is_gathering = False
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
                if self._schedule.is_enough():
                    self._enough.notify()
            elif self._schedule.may_cut():  # otherwise nobody could use it yet, and waking a thread is not free
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
                self._may_be_cut.wait_for(
                    lambda: self._stopped or (self._schedule.may_cut() and not self._is_gathering)
                )
                self._gather()
                if self._stopped:
                    return
                if not self._schedule.may_cut():  # who waited has left
                    continue
                cut = self._schedule.cut()
            self._run_batch(cut)

    def _gather(self) -> None:
        """Wait for more where more is about to come."""
        now = time.monotonic()
        until = self._schedule.begin_wait(now)
        while until > now and not self._stopped:
            self._is_gathering = True
            self._enough.wait_for(lambda: self._stopped or self._schedule.is_enough(), until - now)
            self._is_gathering = False
            now = time.monotonic()
            until = self._schedule.go_on_waiting(now)

    def _run_batch(self, cut: Cut[Item]) -> None:
        """Prepare while the engine may still run another batch, wait for it, run, hand out the rows."""
        entries, run = cut.entries, self._run_alone if cut.alone else self._run
        try:
            batch = self._prepared(cut)
            started = time.monotonic()
            try:
                output = run(batch)
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

    def _prepared(self, cut: Cut[Item]) -> Batch:
        """The batch, when the engine is this thread's to run it."""
        try:
            batch = self._prepare([entry.item for entry in cut.entries])
            with self._lock:
                self._engine_free.wait_for(lambda: self._schedule.num_free >= cut.num_streams)
                self._schedule.enter_engine(cut)
            return batch
        finally:
            with self._lock:
                self._schedule.num_prepared -= 1
                if self._schedule.may_cut():
                    self._may_be_cut.notify()

    def _leave_engine(self, cut: Cut[Item], seconds: float) -> None:
        with self._lock:
            self._schedule.leave_engine(cut, time.monotonic(), seconds)
            if self._schedule.num_prepared:
                self._engine_free.notify()
            elif self._schedule.may_cut():
                self._may_be_cut.notify()

    def _hand_out(self, entries: list[Entry[Item]], output: NDArray[np.float32]) -> None:
        with self._lock:
            tell([e.ticket for n, e in enumerate(entries) if e.ticket.take(e.row, output[n : n + 1])])

    def _observe(self, cut: Cut[Item], started: float, seconds: float) -> None:
        entries = cut.entries
        costs = [entry.cost for entry in entries]
        padded = len(entries) * max(costs)
        log.debug("batch of %d x %d, %.1f ms", len(entries), max(costs), 1e3 * seconds)
        recent = seconds / max(1, padded)
        self._seconds_per_cost = 0.8 * self._seconds_per_cost + 0.2 * recent if self._seconds_per_cost else recent
        if self._observer is not None:
            waited = [max(0.0, started - entry.ticket.since) for entry in entries]
            sizes = sum(self._size(entry.item) for entry in entries)
            share = cut.num_streams / self._schedule.num_streams
            self._observer.ran(Ran(len(entries), sizes, padded, seconds, share, waited))

    def _fail(self, ticket: Ticket[Item], error: Exception) -> None:
        self._waiting.forget(ticket)
        ticket.error = error
        tell([ticket])
