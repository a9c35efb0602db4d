"""Reading a body: what is taken, and how much of it."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from serving.api.state import Limits
from tests.support.api import Server, serving
from tests.support.profiles import Tiny
from tests.support.tiny_models import embedder


@pytest.fixture
async def server(tiny: Tiny) -> AsyncIterator[Server]:
    async with serving(embedder(tiny)) as server:
        yield server


async def test_other_media_and_compressed_bodies_are_refused(server: Server) -> None:
    for headers in ({"content-type": "text/plain"}, {"content-type": "application/json", "content-encoding": "gzip"}):
        response = await server.client.post("/v1/embeddings", content=b"{}", headers=headers)
        assert response.status_code == 415


async def test_the_body_limit_fires_while_reading(tiny: Tiny) -> None:
    async with serving(embedder(tiny), limits=Limits(max_body_bytes=1000)) as server:
        sent = 0

        async def endless() -> AsyncIterator[bytes]:
            nonlocal sent
            while sent < 1_000_000:
                sent += 100
                yield b" " * 100

        response = await server.client.post("/v1/embeddings", content=endless())
        assert response.status_code == 413
        assert "1000 bytes" in response.json()["message"]
        assert sent <= 1200
        declared = await server.client.post("/v1/embeddings", content=b"", headers={"content-length": "1001"})
        assert declared.status_code == 413
        body = b'{"model":"tiny","input":"w1"}'
        assert (await server.client.post("/v1/embeddings", content=body.ljust(1000))).status_code == 200
        assert (await server.client.post("/v1/embeddings", content=body.ljust(1001))).status_code == 413
