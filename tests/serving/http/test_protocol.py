"""HTTP/1.1 on a socket: heads that are slow, large or broken, and answers from the head when the server is busy."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator

import httpx
import pytest

from serving.api.state import Limits
from serving.http import protocol
from serving.watch.logs import FIELDS
from tests.support.api import Server, listening, serving
from tests.support.engines import held
from tests.support.profiles import Tiny
from tests.support.tiny_models import embedder


@pytest.fixture
async def server(tiny: Tiny) -> AsyncIterator[Server]:
    async with serving(embedder(tiny)) as server:
        yield server


async def raw(port: int, data: bytes, *, wait_s: float = 5.0) -> bytes:
    """What comes back until the server closes."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(data)
    try:
        return await asyncio.wait_for(reader.read(), wait_s)
    except ConnectionResetError:
        return b""
    finally:
        writer.close()


async def test_heads_that_are_slow_or_large_are_cut_off(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(protocol, "HEAD_TIMEOUT_S", 0.2)
    async with listening(server) as port:
        slow = await asyncio.gather(*(raw(port, b"GET /v1/health/live HTTP/1.1\r\nhost:") for _ in range(20)))
        assert all(answer.startswith(b"HTTP/1.1 408") for answer in slow)
        large = await raw(port, b"GET / HTTP/1.1\r\nx: " + b"a" * 20_000)
        assert large.startswith(b"HTTP/1.1 431")
        whole = await raw(port, b"GET / HTTP/1.1\r\nx: " + b"a" * 20_000 + b"\r\n\r\n")
        assert whole.startswith(b"HTTP/1.1 431")
        assert whole.count(b"HTTP/1.1") == 1
        many = await raw(port, b"GET / HTTP/1.1\r\n" + b"a: b\r\n" * 101 + b"\r\n")
        assert many.startswith(b"HTTP/1.1 400")
        idle = await raw(port, b"")
        assert idle.startswith(b"HTTP/1.1 408")
        async with httpx.AsyncClient() as client:
            live = f"http://127.0.0.1:{port}/v1/health/live"
            assert (await client.get(live)).status_code == 200
            await asyncio.sleep(0.4)  # an idle connection that has been used is kept
            assert (await client.get(live)).status_code == 200


@pytest.mark.parametrize(
    "head",
    [
        b"POST /v1/embeddings HTTP/1.1\r\ncontent-length: 5\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n",
        b"POST /v1/embeddings HTTP/1.1\r\ncontent-length: 5\r\ncontent-length: 6\r\n\r\nhello",
        b"POST /v1/embeddings HTTP/1.1\r\ntransfer-encoding: chunked\r\n\r\nzz\r\n",
        b"GET / HTTP/0.9\r\n\r\n\x00",
        b"GET / HTTP/1.1\r\na\x00b: c\r\n\r\n",
    ],
)
async def test_broken_framing_harms_no_other_connection(server: Server, head: bytes) -> None:
    async with listening(server) as port:
        assert (await raw(port, head)).startswith(b"HTTP/1.1 40")
        async with httpx.AsyncClient() as client:
            assert (await client.get(f"http://127.0.0.1:{port}/v1/health/live")).status_code == 200


async def test_on_a_socket_a_busy_server_answers_from_the_head_and_the_connection_goes_on(
    tiny: Tiny, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    gate, infer = held(tiny)
    async with (
        serving(embedder(tiny), infer=infer, limits=Limits(max_in_flight=1)) as server,
        listening(server) as port,
    ):
        base, body = f"http://127.0.0.1:{port}", {"model": "tiny", "input": "w1"}
        limits = httpx.Limits(max_connections=1)
        async with httpx.AsyncClient(base_url=base) as first, httpx.AsyncClient(base_url=base, limits=limits) as second:
            waiting = asyncio.create_task(first.post("/v1/embeddings", json=body))
            while not server.state.in_flight:
                await asyncio.sleep(0.005)
            for path in ("/v1/embeddings", "/v1/embeddings?a=b", "/v1/ranking"):
                refused = await second.post(path, json=body | {"padding": "x" * 500_000})
                assert refused.status_code == 429
                assert refused.json()["type"] == "overloaded"
                assert refused.headers["retry-after"] == "1"
                assert len(refused.headers["x-request-id"]) == 32
            assert (await second.get("/v1/health/ready")).status_code == 200
            gate.set()
            assert (await waiting).status_code == 200
            assert (await second.post("/v1/embeddings", json=body)).status_code == 200
            pool = second._transport._pool  # type: ignore[attr-defined]
            assert len(pool.connections) == 1
        told = server.metrics.text().decode()
        assert 'request_count_total{route="/v1/embeddings",status="429"} 2.0' in told
        logged = [getattr(record, FIELDS, {}) for record in caplog.records]
        assert [fields["route"] for fields in logged if fields.get("status") == 429] == ["/v1/embeddings"]  # with ?a=b


async def test_a_busy_server_closes_a_connection_whose_client_wants_that(tiny: Tiny) -> None:
    gate, infer = held(tiny)
    async with (
        serving(embedder(tiny), infer=infer, limits=Limits(max_in_flight=1)) as server,
        listening(server) as port,
    ):
        waiting = asyncio.create_task(server.embed())
        while not server.state.in_flight:
            await asyncio.sleep(0.005)
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        head = b"POST /v1/embeddings HTTP/1.1\r\nhost: a\r\nconnection: close\r\ncontent-length: 4\r\n\r\n"
        writer.write(head + b"{}")
        await writer.drain()
        await asyncio.sleep(0.02)
        writer.write(b"  ")
        answer = await asyncio.wait_for(reader.read(), 5)
        assert answer.startswith(b"HTTP/1.1 429 ")
        assert answer.endswith(b"}")
        writer.close()
        gate.set()
        assert (await waiting).status_code == 200
