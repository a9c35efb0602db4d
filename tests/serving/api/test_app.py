"""The application: routes and states, the limits of one request, what is counted and logged."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import AsyncIterator

import numpy as np
import pytest
from numpy.typing import NDArray

from serving.api.state import Limits
from serving.backends.base import Inputs
from serving.watch.logs import JsonFormatter
from tests.support.api import Server, serving
from tests.support.engines import held
from tests.support.profiles import Tiny
from tests.support.tiny_models import embedder


@pytest.fixture
async def server(tiny: Tiny) -> AsyncIterator[Server]:
    async with serving(embedder(tiny)) as server:
        yield server


async def test_unknown_routes_and_methods_are_refused(server: Server) -> None:
    for path in ("/", "/v1/embeddings/", "//v1/embeddings", "/V1/embeddings", "/v1/admin", "/openapi"):
        assert (await server.client.get(path)).status_code == 404
    for method, path, allowed in (("GET", "/v1/embeddings", "POST"), ("POST", "/v1/models", "GET, HEAD")):
        response = await server.client.request(method, path)
        assert response.status_code == 405
        assert response.headers["allow"] == allowed


async def test_a_full_queue_turns_the_request_away_with_429_and_a_time(tiny: Tiny) -> None:
    gate, infer = held(tiny)
    async with serving(embedder(tiny), infer=infer, queue=4) as server:
        waiting = []
        for num_queued in (0, 0, 8):  # one batch runs, one is prepared, one waits
            waiting.append(asyncio.create_task(server.embed(input=["w1"] * 8)))
            batcher = server.batcher
            while batcher._num_taken - batcher._num_ended < len(waiting) or batcher._waiting.num_items != num_queued:
                await asyncio.sleep(0.005)
        response = await server.embed()
        assert response.status_code == 429
        assert int(response.headers["retry-after"]) >= 1
        gate.set()
        assert [(await task).status_code for task in waiting] == [200, 200, 200]


async def test_too_many_requests_at_once_are_turned_away(tiny: Tiny) -> None:
    gate, infer = held(tiny)
    async with serving(embedder(tiny), infer=infer, limits=Limits(max_in_flight=2)) as server:
        waiting = [asyncio.create_task(server.embed()) for _ in range(2)]
        while server.state.in_flight < 2:
            await asyncio.sleep(0.005)
        assert (await server.embed()).status_code == 429
        gate.set()
        assert [(await task).status_code for task in waiting] == [200, 200]
        assert server.state.in_flight == 0


async def test_an_engine_error_is_a_500_that_does_not_leak_its_text(tiny: Tiny) -> None:
    def infer(inputs: Inputs) -> NDArray[np.float32]:
        raise RuntimeError("0x7f00dead at /secret/path")

    async with serving(embedder(tiny), infer=infer) as server:
        response = await server.embed()
        assert response.status_code == 500
        assert "secret" not in response.text


async def test_before_it_is_ready_only_probes_and_metrics_are_answered(server: Server) -> None:
    server.state.service, server.state.message = None, "loading: prove"
    live, ready = await server.client.get("/v1/health/live"), await server.client.get("/v1/health/ready")
    assert (live.status_code, ready.status_code) == (200, 503)
    assert ready.json()["message"] == "loading: prove"
    assert ready.json()["ready"] is False
    assert (await server.client.get("/metrics")).status_code == 200
    assert (await server.embed()).status_code == (await server.client.get("/v1/models")).status_code == 503


async def test_while_draining_new_requests_get_503_and_the_connection_closes(server: Server) -> None:
    server.state.draining, server.state.message = True, "draining"
    response = await server.embed()
    assert response.status_code == 503
    assert response.headers["connection"] == "close"
    assert (await server.client.get("/v1/health/ready")).status_code == 503
    assert (await server.client.get("/v1/health/live")).status_code == 200


async def test_labels_do_not_grow_with_bad_paths(server: Server) -> None:
    await server.embed()
    await server.client.get("/nothing")
    before = len(server.metrics.text().splitlines())
    for n in range(300):
        await server.client.get(f"/nothing/{n}")
    assert len(server.metrics.text().splitlines()) == before
    for name in (
        'queue_depth{tower="model"} 0.0',
        'batch_size_count{tower="model"} 1.0',
        "prompt_tokens_total 3.0",
        'queue_time_seconds_count{tower="model"} 1.0',
    ):
        await server.tells(name)


async def test_a_request_leaves_one_json_line_that_it_cannot_forge(
    server: Server, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO):
        strange = [(b"x-request-id", "x\u2028".encode())]
        response = await server.client.post(
            "/v1/embeddings", content=b'{"model":"a\\nb","input":"secret"}', headers=strange
        )
        kept = await server.client.get("/lost%0A", headers={"x-request-id": "abc-1"})
    lines = [JsonFormatter().format(record) for record in caplog.records if record.name == "serving.api.app"]
    assert len(lines) == 2
    first = json.loads(lines[0])
    assert (first["status"], first["route"]) == (404, "/v1/embeddings")
    assert first["request_id"] == response.headers["x-request-id"] != "x\u2028"
    assert "secret" not in "".join(lines)
    assert "\n" not in "".join(lines)
    assert kept.headers["x-request-id"] == "abc-1"
