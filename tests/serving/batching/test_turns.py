"""Whose turn it is: half of the engine's time for the oldest calls, half for those served least recently."""

from __future__ import annotations

import asyncio
from collections import Counter, deque

from serving.batching.tickets import Entry, Ticket
from serving.batching.turns import Turns

Call = Ticket[str]
MAX_COST = 100


def call(name: str, num_items: int, *, served: int = 0) -> Call:
    loop = asyncio.new_event_loop()
    ticket = Call(loop=loop, future=loop.create_future(), served=served)
    loop.close()
    ticket.waiting = deque(Entry(ticket=ticket, row=row, item=name, cost=1) for row in range(num_items))
    return ticket


def names(turns: Turns[str], *calls: Call, size: int = 4) -> str:
    return "".join(entry.item for entry in turns.window(calls, size))


def test_the_oldest_are_taken_whole_and_of_the_others_each_has_an_item_in_turn() -> None:
    turns = Turns[str](max_cost=MAX_COST)
    calls = call("a", 3, served=2), call("b", 3, served=1), call("c", 3, served=1)
    assert names(turns, *calls) == "bcabca"
    turns.spend(10)
    assert names(turns, *calls) == "aaab"


def test_each_half_spends_as_much_whatever_its_batches_cost() -> None:
    turns = Turns[str](max_cost=MAX_COST)
    spent: Counter[str] = Counter()
    for _ in range(400):
        head = names(turns, call("o", 9, served=2), call("n", 9, served=1))[0]
        cost = {"o": 30, "n": 7}[head]
        turns.spend(cost)
        spent[head] += cost
    assert abs(spent["o"] - spent["n"]) <= 30


def test_a_new_small_call_goes_first_though_the_last_batch_was_of_its_half() -> None:
    turns = Turns[str](max_cost=MAX_COST)
    large = call("l", 40)
    assert names(turns, large)[0] == "l"
    turns.spend(MAX_COST)
    large.served = 1
    assert names(turns, large, call("s", 1))[0] == "s"
    assert names(turns, large, call("m", 9), call("s", 1))[:2] == "sm"  # the smallest of the new ones


def test_new_calls_that_never_end_do_not_starve_the_oldest() -> None:
    turns = Turns[str](max_cost=MAX_COST)
    spent: Counter[str] = Counter()
    for _ in range(400):
        head = names(turns, call("o", 9, served=1), call("s", 1))[0]
        turns.spend(7)
        spent[head] += 7
    assert abs(spent["o"] - spent["s"]) <= MAX_COST + 7
