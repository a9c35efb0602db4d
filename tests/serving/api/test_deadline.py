"""The end of a request: a body that stalls, an engine that hangs, a client that leaves."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest

from serving.api.state import Limits
from tests.support.api import Server, serving
from tests.support.engines import held
from tests.support.profiles import Tiny
from tests.support.tiny_models import embedder


@pytest.fixture
async def server(tiny: Tiny) -> AsyncIterator[Server]:
    async with serving(embedder(tiny)) as server:
        yield server


async def test_a_body_that_does_not_arrive_ends_in_408(tiny: Tiny) -> None:
    async with serving(embedder(tiny), limits=Limits(body_timeout_s=0.05)) as server:

        async def stalled() -> AsyncIterator[bytes]:
            yield b"{"
            await asyncio.sleep(5)
            yield b"}"

        assert (await server.client.post("/v1/embeddings", content=stalled())).status_code == 408


async def test_a_hanging_engine_ends_in_504_and_its_request_leaves_the_queue(tiny: Tiny) -> None:
    gate, infer = held(tiny)
    async with serving(embedder(tiny), infer=infer, limits=Limits(request_timeout_s=0.1)) as server:
        first, second = await asyncio.gather(server.embed(input=["w1"] * 8), server.embed(input=["w1"] * 20))
        assert {first.status_code, second.status_code} == {504}
        assert server.batcher._waiting.num_items == 0
        gate.set()


async def test_a_client_that_leaves_takes_its_texts_out_of_the_queue(tiny: Tiny) -> None:
    gate, infer = held(tiny)
    async with serving(embedder(tiny), infer=infer) as server:
        first = asyncio.create_task(server.embed())
        while not server.batcher._schedule.num_running:  # the engine has it: what comes now waits
            await asyncio.sleep(0.005)
        messages = [{"type": "http.request", "body": b'{"model":"tiny","input":["w2","w3"]}', "more_body": False}]
        gone = asyncio.Event()

        async def receive() -> dict[str, Any]:
            if messages:
                return messages.pop()
            await gone.wait()
            return {"type": "http.disconnect"}

        async def send(message: object) -> None:
            raise AssertionError("nobody reads this")

        scope = {"type": "http", "method": "POST", "path": "/v1/embeddings", "headers": []}
        leaving = asyncio.create_task(server.app(scope, receive, send))
        while server.batcher._waiting.num_items < 2:
            await asyncio.sleep(0.005)
        gone.set()
        await leaving
        assert server.batcher._waiting.num_items == 0
        assert 'request_count_total{route="/v1/embeddings",status="499"} 1.0' in server.metrics.text().decode()
        gate.set()
        assert (await first).status_code == 200
