"""The batcher: every request gets its own rows in order, whatever is batched with it."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from serving.batching.batcher import Batcher
from serving.batching.observing import Ran
from serving.batching.schedule import MIN_SHARE
from serving.batching.tickets import Draining, QueueFull, Ticket

Vectors = NDArray[np.float32]


class Engine:
    """Gives (item, length) for each item and remembers its batches; may be held closed.

    What runs alone waits for the same gate, and must find nothing else running, nor anything begin.
    """

    def __init__(self) -> None:
        self.batches: list[list[tuple[int, int]]] = []
        self.open = threading.Event()
        self.open.set()
        self.running = 0
        self.takes_s = 0.0
        self.most_running = 0
        self.alone: list[list[tuple[int, int]]] = []  # of the batches those that ran alone
        self.is_alone, self.disturbed = False, 0

    def run_alone(self, batch: list[tuple[int, int]]) -> Vectors:
        self.alone.append(batch)
        self.disturbed += self.running > 0
        self.is_alone = True
        try:
            return self.run(batch, alone=True)
        finally:
            self.is_alone = False

    def run(self, batch: list[tuple[int, int]], *, alone: bool = False) -> Vectors:
        self.disturbed += self.is_alone and not alone
        self.running += 1
        self.most_running = max(self.most_running, self.running)
        self.batches.append(batch)
        self.open.wait(10)
        time.sleep(self.takes_s)
        self.running -= 1
        if any(number < 0 for number, _ in batch):
            raise RuntimeError("engine broke")
        return np.array(batch, dtype=np.float32)


class Seen:
    def __init__(self) -> None:
        self.num_queued: Callable[[], int]
        self.ran_items = 0
        self.shares: list[float] = []

    def watch_queue(self, num_queued: Callable[[], int]) -> None:
        self.num_queued = num_queued

    def ran(self, batch: Ran) -> None:
        assert batch.cost <= batch.padded_cost
        assert len(batch.waited_s) == batch.num_items
        self.ran_items += batch.num_items
        self.shares.append(batch.share)


def make(
    engine: Engine,
    *,
    max_items: int = 8,
    max_cost: int = 1000,
    max_queue: int = 1000,
    num_streams: int = 1,
    stepped: bool = False,
    lends_all: bool = False,
    observer: Seen | None = None,
) -> Batcher[tuple[int, int], list[tuple[int, int]]]:
    return Batcher(
        prepare=list,
        run=engine.run,
        run_alone=engine.run_alone if lends_all else None,
        cost=lambda item: item[1],
        max_batch_items=max_items,
        max_batch_cost=max_cost,
        max_queue_items=max_queue,
        num_streams=num_streams,
        stepped=stepped,
        observer=observer,
    )


async def until(condition: object, timeout_s: float = 5.0) -> None:
    end = time.monotonic() + timeout_s
    while not condition():  # type: ignore[operator]
        assert time.monotonic() < end, "did not happen in time"
        await asyncio.sleep(0.001)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.lists(st.integers(1, 200), min_size=1, max_size=40), min_size=1, max_size=12),
    st.integers(1, 9),
    st.integers(1, 600),
    st.integers(1, 3),
    st.booleans(),
)
def test_any_mix_of_requests_gives_each_its_own_rows_in_order(
    requests: list[list[int]], max_items: int, max_cost: int, num_streams: int, lends_all: bool
) -> None:
    engine, seen = Engine(), Seen()

    async def go() -> list[Vectors]:
        batcher = make(
            engine,
            max_items=max_items,
            max_cost=max_cost,
            max_queue=10_000,
            num_streams=num_streams,
            lends_all=lends_all,
            observer=seen,
        )
        numbered = [[(n * 1000 + i, cost) for i, cost in enumerate(costs)] for n, costs in enumerate(requests)]
        answers = await asyncio.gather(*(batcher.submit(items) for items in numbered))
        assert await batcher.drain(5)
        for thread in batcher._threads:
            thread.join(5)
        return answers

    answers = asyncio.run(go())
    for n, (costs, answer) in enumerate(zip(requests, answers, strict=True)):
        assert answer.tolist() == [[n * 1000 + i, cost] for i, cost in enumerate(costs)]
    for batch in engine.batches:
        assert len(batch) <= max_items
        assert len(batch) == 1 or len(batch) * max(cost for _, cost in batch) <= max_cost
    assert engine.most_running <= num_streams
    assert engine.disturbed == 0
    assert seen.ran_items == sum(map(len, requests))
    assert seen.num_queued() == 0


async def test_a_little_waits_for_more_beside_a_stream_that_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("serving.batching.gathering.BESIDE_S", 20.0)
    engine = Engine()
    batcher = make(engine, max_items=16, max_cost=16 * MIN_SHARE, num_streams=2)
    await asyncio.wait_for(batcher.submit([(0, 5)]), 5)  # nothing runs, nothing is waited for
    engine.open.clear()
    first = asyncio.create_task(batcher.submit([(1, 5)]))
    await until(lambda: engine.running)
    others = [asyncio.create_task(batcher.submit([(n, 5)])) for n in (2, 3)]
    await asyncio.sleep(0.02)
    assert len(engine.batches) == 2  # 10 of 16 wait
    others.append(asyncio.create_task(batcher.submit([(4, 6)])))  # 16
    await until(lambda: len(engine.batches) == 3)
    assert len(engine.batches[-1]) == 3
    engine.open.set()
    await asyncio.gather(first, *others)
    await batcher.drain(5)


async def test_calls_just_answered_are_awaited_when_they_come_back_and_run_together(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("serving.batching.gathering.NEXT_S", 20.0)
    monkeypatch.setattr("serving.batching.gathering.ALL_S", 20.0)
    engine = Engine()
    engine.takes_s = 0.003  # longer than clients need to be back
    engine.open.clear()
    batcher = make(engine, max_cost=1000)
    first = asyncio.create_task(batcher.submit([(0, 5)]))
    await until(lambda: engine.running)
    calls = [asyncio.create_task(batcher.submit([(n, 5)])) for n in (1, 2, 3)]
    await asyncio.sleep(0.02)
    engine.open.set()
    await asyncio.wait_for(asyncio.gather(first, *calls), 5)
    assert [len(batch) for batch in engine.batches] == [1, 3]  # a lone call waits for nobody
    back = [asyncio.create_task(batcher.submit([(4, 5)]))]
    await asyncio.sleep(0.02)
    assert len(engine.batches) == 2
    back += [asyncio.create_task(batcher.submit([(n, 5)])) for n in (5, 6)]
    await asyncio.wait_for(asyncio.gather(*back), 5)
    assert [len(batch) for batch in engine.batches] == [1, 3, 3]
    await batcher.drain(5)


async def test_stopping_ends_a_wait_for_more(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("serving.batching.gathering.NEXT_S", 20.0)
    monkeypatch.setattr("serving.batching.gathering.ALL_S", 20.0)
    engine = Engine()
    engine.takes_s = 0.003  # longer than clients need to be back
    batcher = make(engine)
    await asyncio.gather(*(batcher.submit([(n, 5)]) for n in range(3)))
    lone = asyncio.create_task(batcher.submit([(9, 5)]))
    await asyncio.sleep(0.02)
    await batcher.drain(0.05)
    with pytest.raises(Draining):
        await lone
    for thread in batcher._threads:
        thread.join(5)
        assert not thread.is_alive()


async def test_an_engine_that_pays_for_each_shape_runs_batches_of_few_sizes_and_leaves_nothing_behind() -> None:
    engine = Engine()
    batcher = make(engine, max_items=16, max_cost=1000, stepped=True)
    answer = await batcher.submit([(n, 60) for n in range(11)])
    assert answer[:, 0].tolist() == list(range(11))
    assert [len(batch) for batch in engine.batches] == [8, 3]
    await batcher.submit([(n, 20) for n in range(11)])
    assert [len(batch) for batch in engine.batches] == [8, 3, 11]  # few, and all that there is
    await batcher.drain(5)


async def test_what_arrives_while_the_engine_runs_shares_the_next_batch() -> None:
    engine = Engine()
    engine.open.clear()
    batcher = make(engine)
    first = asyncio.create_task(batcher.submit([(0, 5)]))
    await until(lambda: engine.running)
    others = [asyncio.create_task(batcher.submit([(n, 5)])) for n in range(1, 6)]
    await asyncio.sleep(0.02)
    assert len(engine.batches) == 1
    engine.open.set()
    await asyncio.gather(first, *others)
    assert [len(batch) for batch in engine.batches] == [1, 5]
    await batcher.drain(5)


async def test_exactly_one_full_batch_is_prepared_while_the_engine_runs() -> None:
    engine, prepared = Engine(), []
    engine.open.clear()

    def prepare(items: list[tuple[int, int]]) -> list[tuple[int, int]]:
        prepared.append(len(items))
        return items

    batcher = Batcher(
        prepare=prepare, run=engine.run, cost=lambda i: i[1], max_batch_items=4, max_batch_cost=999, max_queue_items=99
    )
    task = asyncio.create_task(batcher.submit([(n, 5) for n in range(20)]))
    await until(lambda: len(prepared) == 2)
    await asyncio.sleep(0.02)
    assert prepared == [4, 4]
    engine.open.set()
    await task
    await batcher.drain(5)


async def test_a_large_request_does_not_block_a_small_one() -> None:
    engine = Engine()
    engine.open.clear()
    batcher = make(engine, max_items=4)
    large = asyncio.create_task(batcher.submit([(n, 5) for n in range(200)]))
    await until(lambda: engine.running)
    small = asyncio.create_task(batcher.submit([(999, 5)]))
    await asyncio.sleep(0.01)
    engine.open.set()
    await small
    place = next(n for n, batch in enumerate(engine.batches) if (999, 5) in batch)
    assert place <= 4
    await large
    await batcher.drain(5)


async def test_small_requests_do_not_starve_a_large_one_of_another_length() -> None:
    engine = Engine()
    batcher = make(engine, max_items=4, max_queue=10_000)
    large = asyncio.create_task(batcher.submit([(n, 900) for n in range(20)]))
    stop = False

    async def flood() -> None:
        while not stop:
            await asyncio.gather(*(batcher.submit([(1, 3)]) for _ in range(8)))

    floods = [asyncio.create_task(flood()) for _ in range(4)]
    await asyncio.wait_for(large, 10)
    stop = True
    await asyncio.gather(*floods)
    await batcher.drain(5)


async def test_a_full_queue_turns_the_request_away() -> None:
    engine = Engine()
    engine.open.clear()
    batcher = make(engine, max_items=1, max_queue=3)
    tasks = [asyncio.create_task(batcher.submit([(n, 5)])) for n in range(2)]  # one runs, one is prepared
    await until(lambda: engine.running and not batcher._waiting.num_items)
    tasks.append(asyncio.create_task(batcher.submit([(n, 5) for n in range(3)])))
    await asyncio.sleep(0.01)
    with pytest.raises(QueueFull, match="at most 3 may; try again in 1 s"):
        await batcher.submit([(9, 5)])
    with pytest.raises(QueueFull):
        batcher.refuse_if_full(1)
    engine.open.set()
    await asyncio.gather(*tasks)
    await batcher.submit([(9, 5)])
    await batcher.drain(5)


async def test_a_request_larger_than_the_queue_is_served_when_nothing_waits() -> None:
    batcher = make(Engine(), max_queue=3)
    assert (await batcher.submit([(n, 5) for n in range(10)])).shape == (10, 2)
    await batcher.drain(5)


async def test_a_cancelled_request_costs_the_engine_nothing() -> None:
    engine = Engine()
    engine.open.clear()
    batcher = make(engine, max_items=4)
    first = asyncio.create_task(batcher.submit([(0, 5)]))
    await until(lambda: engine.running)
    second = asyncio.create_task(batcher.submit([(1, 5), (2, 5)]))
    await asyncio.sleep(0.01)
    second.cancel()
    await asyncio.gather(second, return_exceptions=True)
    engine.open.set()
    await first
    assert await batcher.drain(5)
    assert engine.batches == [[(0, 5)]]


async def test_a_failing_batch_fails_its_requests_and_no_later_one() -> None:
    engine = Engine()
    batcher = make(engine)
    with pytest.raises(RuntimeError, match="engine broke"):
        await batcher.submit([(-1, 5)] + [(n, 5) for n in range(100)])
    assert (await batcher.submit([(7, 5)])).tolist() == [[7, 5]]
    assert await batcher.drain(5)


async def test_draining_finishes_what_was_taken_and_refuses_more() -> None:
    engine = Engine()
    engine.open.clear()
    batcher = make(engine, max_items=2)
    task = asyncio.create_task(batcher.submit([(n, 5) for n in range(10)]))
    await until(lambda: engine.running)
    drain = asyncio.create_task(batcher.drain(5))
    await asyncio.sleep(0.01)
    with pytest.raises(Draining):
        await batcher.submit([(1, 1)])
    engine.open.set()
    assert (await task).shape == (10, 2)
    assert await drain


async def test_a_drain_deadline_fails_what_is_still_waiting() -> None:
    engine = Engine()
    engine.open.clear()
    batcher = make(engine, max_items=2)
    task = asyncio.create_task(batcher.submit([(n, 5) for n in range(10)]))
    await until(lambda: engine.running)
    assert not await batcher.drain(0.05)
    with pytest.raises(Draining):
        await task
    engine.open.set()


async def test_what_waits_is_shared_by_the_streams_that_are_free() -> None:
    engine = Engine()
    engine.open.clear()
    batcher = Batcher(
        prepare=list,
        run=engine.run,
        cost=lambda item: item[1],
        max_batch_items=8,
        max_batch_cost=100,
        max_queue_items=99,
        num_streams=2,
    )
    task = asyncio.create_task(batcher.submit([(n, 10) for n in range(8)]))
    await until(lambda: engine.running == 2)
    assert sorted(len(batch) for batch in engine.batches) == [4, 4]
    engine.open.set()
    assert (await task)[:, 0].tolist() == list(range(8))
    await batcher.drain(5)


async def test_while_all_calls_are_few_one_batch_after_another_runs_alone() -> None:
    engine = Engine()
    engine.open.clear()
    batcher = make(engine, num_streams=2, max_cost=100, lends_all=True)
    calls = [asyncio.create_task(batcher.submit([(0, 10)]))]
    await until(lambda: engine.running)
    calls += [asyncio.create_task(batcher.submit([(n, 10)])) for n in (1, 2, 3)]
    await asyncio.sleep(0.02)
    assert engine.running == 1  # 40 of the 50 that are few
    engine.open.set()
    await asyncio.wait_for(asyncio.gather(*calls), 5)
    assert [len(batch) for batch in engine.alone] == [1, 3]
    await batcher.drain(5)


async def test_more_than_few_run_in_streams_and_what_is_left_of_them_alone_when_these_have_ended() -> None:
    engine, seen = Engine(), Seen()
    engine.open.clear()
    batcher = make(engine, num_streams=2, max_cost=100, lends_all=True, observer=seen)
    many = asyncio.create_task(batcher.submit([(n, 10) for n in range(6)]))
    await until(lambda: engine.running == 2)
    late = asyncio.create_task(batcher.submit([(9, 10)]))
    await asyncio.sleep(0.02)
    assert not engine.alone
    engine.open.set()
    await asyncio.wait_for(asyncio.gather(many, late), 5)
    assert engine.alone == [[(9, 10)]]
    assert engine.disturbed == 0
    await until(lambda: len(seen.shares) == 3)
    assert sorted(seen.shares) == [0.5, 0.5, 1.0]  # of the engine
    await batcher.drain(5)


async def test_what_comes_while_the_last_stream_ends_still_joins_the_batch_that_runs_alone() -> None:
    gates = {n: threading.Event() for n in (0, 3)}

    class Gated(Engine):
        def run(self, batch: list[tuple[int, int]], *, alone: bool = False) -> Vectors:
            gates.get(batch[0][0], self.open).wait(10)
            return super().run(batch, alone=alone)

    engine = Gated()
    batcher = make(engine, num_streams=2, max_cost=100, lends_all=True)
    many = asyncio.create_task(batcher.submit([(n, 10) for n in range(6)]))
    await until(lambda: batcher._schedule.num_running == 2)
    late = [asyncio.create_task(batcher.submit([(8, 10)]))]
    gates[0].set()
    await until(lambda: batcher._schedule.num_free == 1)
    late.append(asyncio.create_task(batcher.submit([(9, 10)])))
    await asyncio.sleep(0.02)
    gates[3].set()
    await asyncio.wait_for(asyncio.gather(many, *late), 5)
    assert engine.alone == [[(8, 10), (9, 10)]]
    await batcher.drain(5)


async def test_a_full_batch_waits_prepared_while_another_runs_alone() -> None:
    engine = Engine()
    engine.open.clear()
    batcher = make(engine, num_streams=2, max_cost=100, max_items=100, lends_all=True)
    small = asyncio.create_task(batcher.submit([(0, 10)]))
    await until(lambda: engine.is_alone)
    large = asyncio.create_task(batcher.submit([(n, 10) for n in range(1, 30)]))
    await until(lambda: batcher._schedule.num_prepared == 1)
    await asyncio.sleep(0.02)
    assert engine.running == 1
    engine.open.set()
    await asyncio.wait_for(asyncio.gather(small, large), 5)
    assert engine.disturbed == 0
    assert engine.most_running == 2
    await batcher.drain(5)


async def test_what_is_told_of_a_batch_counts_rounding_up_as_padding() -> None:
    told: list[tuple[int, int]] = []

    class Told(Seen):
        def ran(self, batch: Ran) -> None:
            told.append((batch.cost, batch.padded_cost))

    batcher = Batcher(
        prepare=list,
        run=Engine().run,
        cost=lambda item: -(-item[1] // 8) * 8,
        size=lambda item: item[1],
        max_batch_items=8,
        max_batch_cost=100,
        max_queue_items=99,
        observer=Told(),
    )
    await batcher.submit([(0, 9), (1, 12)])
    await until(lambda: told == [(21, 32)])
    await batcher.drain(5)


async def test_a_ticket_that_was_left_before_its_items_came_is_never_queued() -> None:
    engine = Engine()
    batcher = make(engine)
    ticket = Ticket[tuple[int, int]].here()
    waiting = asyncio.create_task(batcher.answer(ticket))
    await asyncio.sleep(0)
    waiting.cancel()
    await asyncio.gather(waiting, return_exceptions=True)
    batcher.put(ticket, [(1, 5)])
    assert await batcher.drain(5)
    assert engine.batches == []


async def test_in_a_deep_queue_the_oldest_call_is_not_served_as_slowly_as_all() -> None:
    engine = Engine()
    engine.open.clear()
    batcher = make(engine, max_items=4)
    first = asyncio.create_task(batcher.submit([(0, 5)]))
    await until(lambda: engine.running)
    calls = [asyncio.create_task(batcher.submit([(10 * n + i, 5) for i in range(8)])) for n in range(1, 7)]
    await asyncio.sleep(0.02)
    engine.open.set()
    await asyncio.gather(first, *calls)
    of_oldest = [n for n, batch in enumerate(engine.batches) if any(10 <= number < 20 for number, _ in batch)]
    assert of_oldest[-1] <= 5, engine.batches  # the eighth when each call had one item in turn
    await batcher.drain(5)
