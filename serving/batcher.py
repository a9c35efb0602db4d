"""Gather items of many requests into batches for a blocking engine: dynamic batching that knows nothing of tasks."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Generic, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from serving.forming import form

log = logging.getLogger(__name__)

Item = TypeVar("Item")
Batch = TypeVar("Batch")

WINDOW = 4  # batches' worth of items among which similar lengths are looked for


class QueueFull(Exception):
    """More items wait than may; try again after retry_after_s."""

    def __init__(self, *, num_queued: int, limit: int, retry_after_s: int) -> None:
        self.retry_after_s = retry_after_s
        super().__init__(f"{num_queued} items wait, at most {limit} may; try again in {retry_after_s} s")


class Draining(Exception):
    """The batcher is shutting down and takes, or finishes, nothing more."""


class Observer(Protocol):
    """Who wants to know what the batcher does; called from its threads."""

    def queued(self, num_items: int) -> None:
        """So many items wait now."""

    def ran(self, *, num_items: int, cost: int, padded_cost: int, seconds: float, waited_s: Sequence[float]) -> None:
        """One batch ran; waited_s holds each item's time in the queue."""


@dataclass(kw_only=True, eq=False)
class _Request(Generic[Item]):
    loop: asyncio.AbstractEventLoop
    future: asyncio.Future[NDArray[np.float32]]
    waiting: deque[_Entry[Item]] = field(default_factory=deque)
    num_missing: int
    num_items: int
    since: float  # time.monotonic()
    served: int = 0  # the last turn that took an item of it
    output: NDArray[np.float32] | None = None


@dataclass(kw_only=True, eq=False)
class _Entry(Generic[Item]):
    request: _Request[Item]
    row: int
    item: Item
    cost: int


class Batcher(Generic[Item, Batch]):
    """Submit items from an event loop; threads cut batches whenever the engine is free. There is no timer.

    One thread more than there are streams: when a full batch waits, it is cut and prepared while the engine still
    runs. A batch that is not full is cut only when the engine is free, so that late arrivals still join it.
    Every second batch starts from the oldest request and every other from the next in turn: a large request neither
    starves nor blocks small ones.
    """

    def __init__(
        self,
        *,
        prepare: Callable[[list[Item]], Batch],
        run: Callable[[Batch], NDArray[np.float32]],
        cost: Callable[[Item], int],
        max_batch_items: int,
        max_batch_cost: int,
        max_queue_items: int,
        num_streams: int = 1,
        observer: Observer | None = None,
    ) -> None:
        self._prepare, self._run, self._cost = prepare, run, cost
        self._max_items, self._max_cost, self._max_queue = max_batch_items, max_batch_cost, max_queue_items
        self._observer = observer
        self._changed = threading.Condition()  # its lock is reentrant
        self._requests: deque[_Request[Item]] = deque()  # with items waiting, oldest first
        self._turn = 0  # batches cut so far
        self._num_queued = self._queued_cost = self._num_unfinished = 0
        self._num_free, self._num_prepared = num_streams, 0
        self._seconds_per_cost = 0.0
        self._draining = self._stopped = False
        self._threads = [
            threading.Thread(target=self._work, name=f"batcher-{n}", daemon=True) for n in range(num_streams + 1)
        ]
        for thread in self._threads:
            thread.start()

    def refuse_if_full(self, num_items: int) -> None:
        """Raise QueueFull or Draining if submit would: ask before spending work on the items."""
        with self._changed:
            if self._draining:
                raise Draining("the server is shutting down")
            # An idle server takes any request: one that is larger than the queue could never be served otherwise.
            if self._num_queued and self._num_queued + num_items > self._max_queue:
                seconds = self._queued_cost * self._seconds_per_cost
                raise QueueFull(
                    num_queued=self._num_queued,
                    limit=self._max_queue,
                    retry_after_s=min(60, max(1, math.ceil(seconds))),
                )

    async def submit(self, items: Sequence[Item]) -> NDArray[np.float32]:
        """N >= 1 items -> (N, D), in their order. Raises QueueFull, Draining, or what prepare or run raised.

        Cancelling the call takes its items out of the queue.
        """
        loop = asyncio.get_running_loop()
        request = _Request[Item](
            loop=loop, future=loop.create_future(), num_missing=len(items), num_items=len(items), since=time.monotonic()
        )
        entries = [_Entry(request=request, row=n, item=item, cost=self._cost(item)) for n, item in enumerate(items)]
        with self._changed:
            self.refuse_if_full(len(items))
            request.waiting.extend(entries)
            self._requests.append(request)
            self._count(len(entries), sum(entry.cost for entry in entries))
            self._num_unfinished += 1
            self._changed.notify_all()
        try:
            return await request.future
        finally:
            with self._changed:
                self._forget(request)  # nothing is left to forget unless the caller gave up
                self._num_unfinished -= 1
                self._changed.notify_all()

    async def drain(self, deadline_s: float) -> bool:
        """Take no more, finish what was taken, stop the threads. False: the deadline came first and the rest failed."""
        with self._changed:
            self._draining = True
        deadline = time.monotonic() + deadline_s
        while self._num_unfinished and time.monotonic() < deadline:
            await asyncio.sleep(0.01)
        finished = self._num_unfinished == 0
        with self._changed:
            self._stopped = True
            for request in list(self._requests):
                self._fail(request, Draining("the server stopped before this request was run"))
            self._changed.notify_all()
        return finished

    def _work(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._stopped or self._may_cut())
                if self._stopped:
                    return
                entries = self._cut()
                self._num_prepared += 1
            self._run_batch(entries)

    def _may_cut(self) -> bool:
        if not self._num_queued or self._num_prepared:
            return False
        full = self._num_queued >= self._max_items or self._queued_cost >= self._max_cost
        return self._num_free > 0 or full

    def _cut(self) -> list[_Entry[Item]]:
        """Take the next batch out of the queue."""
        self._turn += 1
        size = WINDOW * self._max_items
        requests = list(self._requests)
        if self._turn % 2:
            requests.sort(key=lambda request: request.served)  # stable: the oldest of those served least recently
        requests = requests[:size]
        window: list[_Entry[Item]] = []
        depth = 0
        while requests and len(window) < size:  # one item of each request in turn
            window += [request.waiting[depth] for request in requests]
            depth += 1
            requests = [request for request in requests if len(request.waiting) > depth]
        costs = [entry.cost for entry in window]
        chosen = [window[n] for n in form(costs, head=0, max_items=self._max_items, max_cost=self._max_cost)]
        rows: dict[int, tuple[_Request[Item], set[int]]] = {}
        for entry in chosen:
            rows.setdefault(id(entry.request), (entry.request, set()))[1].add(entry.row)
        for request, taken in rows.values():
            request.served = self._turn
            request.waiting = deque(entry for entry in request.waiting if entry.row not in taken)
        self._requests = deque(request for request in self._requests if request.waiting)
        self._count(-len(chosen), -sum(entry.cost for entry in chosen))
        return chosen

    def _run_batch(self, entries: list[_Entry[Item]]) -> None:
        """Prepare while the engine may still run another batch, wait for it, run, hand out the rows."""
        started = time.monotonic()
        seconds, holds_stream = 0.0, False
        try:
            batch: Batch | None = None
            error: Exception | None = None
            try:
                batch = self._prepare([entry.item for entry in entries])
            except Exception as caught:
                error = caught
            with self._changed:
                if error is None:
                    self._changed.wait_for(lambda: self._num_free > 0)
                    self._num_free -= 1
                    holds_stream = True
                self._num_prepared -= 1
                self._changed.notify_all()
            if error is not None:
                raise error
            started = time.monotonic()
            output = self._run(batch)  # type: ignore[arg-type]  # set whenever there was no error
            seconds = time.monotonic() - started
            if output.ndim != 2 or len(output) != len(entries):
                raise ValueError(f"the engine gave {output.shape} for a batch of {len(entries)} items")
        except Exception as error:
            log.exception("a batch of %d items failed", len(entries))
            with self._changed:
                for entry in entries:
                    self._fail(entry.request, error)
        else:
            self._hand_out(entries, output)
            self._observe(entries, started, seconds)
        finally:
            if holds_stream:
                with self._changed:
                    self._num_free += 1
                    self._changed.notify_all()

    def _hand_out(self, entries: list[_Entry[Item]], output: NDArray[np.float32]) -> None:
        with self._changed:
            for entry, row in zip(entries, output, strict=True):
                request = entry.request
                if request.output is None:
                    request.output = np.empty((request.num_items, output.shape[1]), dtype=np.float32)
                request.output[entry.row] = row
                request.num_missing -= 1
                if request.num_missing == 0:
                    self._settle(request, request.output)

    def _observe(self, entries: list[_Entry[Item]], started: float, seconds: float) -> None:
        costs = [entry.cost for entry in entries]
        padded = len(entries) * max(costs)
        recent = seconds / max(1, padded)
        self._seconds_per_cost = 0.8 * self._seconds_per_cost + 0.2 * recent if self._seconds_per_cost else recent
        if self._observer is not None:
            waited = [max(0.0, started - entry.request.since) for entry in entries]
            self._observer.ran(
                num_items=len(entries), cost=sum(costs), padded_cost=padded, seconds=seconds, waited_s=waited
            )

    def _count(self, num_items: int, cost: int) -> None:
        self._num_queued += num_items
        self._queued_cost += cost
        if self._observer is not None:
            self._observer.queued(self._num_queued)

    def _forget(self, request: _Request[Item]) -> None:
        """Take what a request still has waiting out of the queue."""
        if request.waiting:
            self._count(-len(request.waiting), -sum(entry.cost for entry in request.waiting))
            request.waiting.clear()
            self._requests.remove(request)

    def _fail(self, request: _Request[Item], error: Exception) -> None:
        self._forget(request)
        self._settle(request, error)

    def _settle(self, request: _Request[Item], result: NDArray[np.float32] | Exception) -> None:
        """Give the waiting call its answer, from any thread."""

        def give() -> None:
            if request.future.done():  # cancelled, or failed by another of its batches
                return
            if isinstance(result, Exception):
                request.future.set_exception(result)
            else:
                request.future.set_result(result)

        # A loop that has closed has nobody waiting.
        with contextlib.suppress(RuntimeError):
            request.loop.call_soon_threadsafe(give)
