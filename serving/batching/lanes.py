"""One engine with the queue before it: items in, rows out, and where each request's time went."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from serving.backends.base import Inputs
from serving.batching.batcher import Batcher
from serving.batching.encoders import EncoderPool
from serving.batching.observing import Observer
from serving.batching.tickets import Ticket

Encoder = TypeVar("Encoder")
Infer = Callable[[Inputs], NDArray[np.float32]]
Item = NDArray[Any]


class Collator(Protocol):
    """How items become an engine's inputs, and what they cost it. A task's towers are such (serving.tasks.base)."""

    @property
    def max_batch(self) -> int:
        """The most items that the engine takes at once."""

    def collate(self, items: Sequence[Item], *, multiple: int = 1) -> Inputs:
        """N items -> the engine's inputs, padded to a width that `multiple` divides."""

    def cost(self, item: Item, *, multiple: int = 1) -> int:
        """Of one item, in tokens, padding to `multiple` included."""


@dataclass(kw_only=True, slots=True)
class Timing:
    """Where one request's time went, over all engines that it needed."""

    queue_s: float = 0.0  # waiting for an engine, or for its batch to be put together
    engine_s: float = 0.0  # in batches that held some of its items


class _TimedItem(NamedTuple):
    item: Item
    timing: Timing


class _Batch(NamedTuple):
    inputs: Inputs
    timings: tuple[Timing, ...]  # of the requests in it, each once


class Lane:
    """One engine, served."""

    def __init__(
        self,
        *,
        collator: Collator,
        infer: Infer,
        infer_alone: Infer | None = None,
        max_batch_items: int,
        max_batch_cost: int,
        max_queue_items: int,
        num_streams: int = 1,
        multiple: int = 1,
        observer: Observer | None = None,
    ) -> None:
        """infer_alone: for a batch that nothing runs beside, where that is another way to run it.

        multiple: see Collator.collate; more than 1 where every shape costs the engine something.

        max_batch_items: no more than the collator's max_batch are put together anyhow.
        """
        self._collator, self.num_streams, self._multiple = collator, num_streams, multiple
        self.batcher = Batcher[_TimedItem, _Batch](
            prepare=self._prepare,
            run=partial(self._run, infer),
            run_alone=infer_alone and partial(self._run, infer_alone),
            cost=lambda entry: collator.cost(entry.item, multiple=multiple),
            size=lambda entry: collator.cost(entry.item),
            max_batch_items=min(max_batch_items, collator.max_batch),
            max_batch_cost=max_batch_cost,
            max_queue_items=max_queue_items,
            num_streams=num_streams,
            stepped=multiple > 1,
            observer=observer,
        )

    def refuse_if_full(self, num_items: int) -> None:
        """Raise QueueFull or Draining if submit would: ask before spending work on the items."""
        self.batcher.refuse_if_full(num_items)

    async def encode(
        self, encoders: EncoderPool[Encoder], work: Callable[[Encoder], Sequence[Item]], timing: Timing
    ) -> tuple[Sequence[Item], NDArray[np.float32]]:
        """Have a thread make N >= 1 items, and run them -> the items, and (N, D) in their order. Adds to timing.

        The thread queues the items itself: a way through the event loop would cost a request as much as its tokens.
        Raises what the work raises, and what Batcher.submit does.
        """
        ticket = Ticket[_TimedItem].here()
        items: Sequence[Item] = ()

        def queue(encoder: Encoder) -> None:
            nonlocal items
            items = work(encoder)
            self.batcher.put(ticket, [_TimedItem(item, timing) for item in items])

        encoders.start(queue, ticket.future)
        rows = await self._answer(ticket, timing)
        return items, rows

    async def submit(self, items: Sequence[Item], timing: Timing) -> NDArray[np.float32]:
        """N >= 1 items -> (N, D), in their order. Adds to timing. Raises what Batcher.submit does."""
        ticket = Ticket[_TimedItem].here()
        self.batcher.put(ticket, [_TimedItem(item, timing) for item in items])
        return await self._answer(ticket, timing)

    async def _answer(self, ticket: Ticket[_TimedItem], timing: Timing) -> NDArray[np.float32]:
        before = timing.engine_s
        try:
            return await self.batcher.answer(ticket)
        finally:
            if ticket.queued:
                waited = time.monotonic() - ticket.since - (timing.engine_s - before)
                timing.queue_s += max(0.0, waited)  # an engine that ran meanwhile for the same request counted there

    def _prepare(self, entries: list[_TimedItem]) -> _Batch:
        inputs = self._collator.collate([entry.item for entry in entries], multiple=self._multiple)
        return _Batch(inputs, tuple({id(entry.timing): entry.timing for entry in entries}.values()))

    def _run(self, infer: Infer, batch: _Batch) -> NDArray[np.float32]:
        started = time.monotonic()
        try:
            return infer(batch.inputs)
        finally:
            seconds = time.monotonic() - started
            for timing in batch.timings:
                timing.engine_s += seconds
