"""Encoder threads: each has its own encoder, and each call gets its own result or error."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Iterator

import pytest

from serving.batching.encoders import EncoderPool


class Encoder:
    def __init__(self) -> None:
        self.thread = threading.get_ident()
        self.works = 0

    def double(self, number: int) -> int:
        assert threading.get_ident() == self.thread, "an encoder belongs to the thread that made it"
        self.works += 1
        time.sleep(0.0005)  # so that every thread has a turn
        if number < 0:
            raise ValueError(f"{number} is below zero")
        return 2 * number


@pytest.fixture
def pool() -> Iterator[EncoderPool[Encoder]]:
    pool = EncoderPool(Encoder, 3)
    yield pool
    pool.close()


async def test_each_call_gets_its_own_result_or_error(pool: EncoderPool[Encoder]) -> None:
    numbers = list(range(-20, 200))
    calls = [pool.run(lambda encoder, number=number: encoder.double(number)) for number in numbers]  # type: ignore[misc]
    results = await asyncio.gather(*calls, return_exceptions=True)
    for number, result in zip(numbers, results, strict=True):
        assert str(result) == (f"{number} is below zero" if number < 0 else str(2 * number))


async def test_work_that_passes_its_result_on_itself_tells_only_its_error(pool: EncoderPool[Encoder]) -> None:
    loop, results = asyncio.get_running_loop(), list[int]()
    silent, failing = loop.create_future(), loop.create_future()
    pool.start(lambda encoder: results.append(encoder.double(4)), silent)
    pool.start(lambda encoder: results.append(encoder.double(-1)), failing)
    with pytest.raises(ValueError, match="-1 is below zero"):
        await failing
    while not results:
        await asyncio.sleep(0.001)
    assert results == [8]
    assert not silent.done()


async def test_work_whose_call_was_cancelled_before_is_not_done() -> None:
    pool = EncoderPool(Encoder, 1)
    gate, works = threading.Event(), list[int]()

    def wait(encoder: Encoder) -> None:
        gate.wait(5)

    first = asyncio.create_task(pool.run(wait))
    await asyncio.sleep(0)
    second = asyncio.create_task(pool.run(lambda encoder: works.append(encoder.double(1))))
    await asyncio.sleep(0)
    second.cancel()
    await asyncio.sleep(0)
    gate.set()
    await first
    assert await pool.run(lambda encoder: encoder.works) == 0
    assert works == []
    pool.close()
