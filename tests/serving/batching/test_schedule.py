"""The schedule: every item is cut once, within the limits, and what runs alone has the engine to itself."""

from __future__ import annotations

import asyncio

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serving.batching.schedule import FEW_SHARE, Cut, Schedule
from serving.batching.tickets import Entry, Ticket

Call = Ticket[int]
MAX_ITEMS, MAX_COST = 4, 64
LOOP = asyncio.new_event_loop()
LOOP.close()


def schedule(*, num_streams: int = 2, lends_all: bool = False) -> Schedule[int]:
    return Schedule[int](
        max_items=MAX_ITEMS, max_cost=MAX_COST, num_streams=num_streams, lends_all=lends_all, stepped=False
    )


def add(queue: Schedule[int], *costs: int) -> Call:
    ticket = Call(loop=LOOP, future=asyncio.Future(loop=LOOP))
    queue.waiting.add(ticket, [Entry(ticket=ticket, row=row, item=row, cost=cost) for row, cost in enumerate(costs)])
    return ticket


def run(queue: Schedule[int]) -> Cut[int]:
    """Cut a batch, prepare it, and let it into the engine."""
    cut = queue.cut()
    queue.enter_engine(cut)
    queue.num_prepared -= 1
    return cut


def test_a_batch_that_is_not_full_waits_for_a_free_stream_and_a_full_one_is_cut_and_prepared() -> None:
    queue = schedule(num_streams=1)
    add(queue, 10)
    assert queue.may_cut()
    first = run(queue)
    add(queue, 10)
    assert not queue.may_cut()
    add(queue, 10, 10, 10)
    assert queue.may_cut()
    queue.cut()
    add(queue, *[10] * 8)
    assert not queue.may_cut()  # one is prepared
    queue.num_prepared -= 1
    queue.leave_engine(first, 1.0, 0.1)
    assert queue.may_cut()


def test_few_calls_take_all_streams_and_are_cut_when_nothing_runs() -> None:
    queue = schedule(lends_all=True)
    few = MAX_COST // FEW_SHARE
    add(queue, few // 2)
    first = run(queue)
    assert (first.alone, first.num_streams, queue.num_free) == (True, 2, 0)
    add(queue, few // 2)
    assert not queue.may_cut()
    queue.leave_engine(first, 1.0, 0.1)
    assert queue.may_cut()
    add(queue, few // 2 + 1)  # no longer few
    second = run(queue)
    assert (second.alone, second.num_streams, queue.num_free) == (False, 1, 1)
    assert queue.may_cut()


@pytest.mark.parametrize("lends_all", [True, False])
@given(data=st.data())
def test_every_item_is_cut_once_and_the_engine_never_holds_more_than_it_has_streams(
    lends_all: bool, data: st.DataObject
) -> None:
    queue, num_streams = schedule(num_streams=3, lends_all=lends_all), 3
    running: list[Cut[int]] = []
    cut_rows: list[tuple[int, int]] = []
    added: list[Call] = []
    for now, costs in enumerate(data.draw(st.lists(st.lists(st.integers(1, MAX_COST), max_size=6), max_size=12))):
        if costs:
            added.append(add(queue, *costs))
            added[-1].num_items = len(costs)
        while queue.may_cut() and queue.num_free:
            cut = run(queue)
            assert 1 <= len(cut.entries) <= MAX_ITEMS
            assert len(cut.entries) * max(entry.cost for entry in cut.entries) <= MAX_COST
            assert not cut.alone or not running
            running.append(cut)
            cut_rows += [(id(entry.ticket), entry.row) for entry in cut.entries]
            assert sum(each.num_streams for each in running) + queue.num_free == num_streams
        for _ in range(data.draw(st.integers(0, len(running)))):
            queue.leave_engine(running.pop(0), float(now), 0.01)
    while running or queue.waiting.num_items:
        for each in running:
            queue.leave_engine(each, 100.0, 0.01)
        running.clear()
        if queue.waiting.num_items:
            assert queue.may_cut()
            running.append(run(queue))
            cut_rows += [(id(entry.ticket), entry.row) for entry in running[0].entries]
    assert sorted(cut_rows) == sorted((id(ticket), row) for ticket in added for row in range(ticket.num_items))
    assert (queue.num_free, queue.num_running, queue.num_prepared) == (num_streams, 0, 0)
