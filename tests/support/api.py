"""The application around a tiny model, reached without a socket: what the tests of routes share."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

import httpx

from serving.api.app import App
from serving.api.state import Limits, Service, State
from serving.batching.encoders import EncoderPool
from serving.batching.lanes import Infer, Lane
from serving.contract.profile import Profile
from serving.http.listen import Tls, bind, configure
from serving.http.server import Server as HttpServer
from serving.tasks.base import Spec
from serving.tasks.table import TASKS
from serving.watch.metrics import Metrics
from serving.watch.tracing import Tracing
from tests.support.profiles import GENERIC
from tests.support.tiny_models import Model


class Server:
    """One application; its engines are real unless a test gives others."""

    def __init__(
        self,
        model: Model,
        *,
        infer: Infer | None = None,
        limits: Limits,
        spec: Spec | None = None,
        queue: int = 100,
        tracing: Tracing | None = None,
    ) -> None:
        spec = spec or model.spec
        self.metrics = Metrics()
        self.encoders = EncoderPool(partial(TASKS[spec.task].encoder, model.tokenizer, spec), 2)
        self.lanes = {
            tower.name: Lane(
                collator=tower,
                infer=infer or model.backend(tower.name).infer,
                max_batch_items=tower.max_batch,
                max_batch_cost=256,
                max_queue_items=queue,
                observer=self.metrics.lane(tower.name),
            )
            for tower in spec.towers
        }
        self.batcher = next(iter(self.lanes.values())).batcher
        self.service = Service(
            spec=spec,
            names=(spec.served_name, f"org/{spec.served_name}"),
            model=spec.served_name,
            release="0.1.0",
            profile=Profile(id="f" * 64, name="tiny__cpu__fp32__tp1", tags=GENERIC, files=(), proof_min_cosine=0.98),
            manifest_text="schema_version: '2.0'\n",
            encoders=self.encoders,
            lanes=self.lanes,
            created=1,
        )
        self.state = State(message="ready", service=self.service)
        self.app = App(self.state, self.metrics, limits, tracing)
        self.client = httpx.AsyncClient(transport=httpx.ASGITransport(self.app), base_url="http://server")

    async def tells(self, sample: str) -> None:
        """Wait until the metrics have it: a batch is counted after it is answered."""
        until = time.monotonic() + 5
        while sample not in (await self.client.get("/v1/metrics")).text:
            assert time.monotonic() < until, sample
            await asyncio.sleep(0.005)

    async def post(self, path: str, **body: Any) -> httpx.Response:
        return await self.client.post(path, json={"model": self.service.names[0]} | body)

    async def embed(self, **body: Any) -> httpx.Response:
        return await self.post("/v1/embeddings", **({"input": "w1"} | body))


@asynccontextmanager
async def serving(
    model: Model,
    *,
    infer: Infer | None = None,
    limits: Limits | None = None,
    spec: Spec | None = None,
    queue: int = 100,
    tracing: Tracing | None = None,
) -> AsyncIterator[Server]:
    limits = limits or Limits(max_inputs=20)
    server = Server(model, infer=infer, limits=limits, spec=spec, queue=queue, tracing=tracing)
    try:
        yield server
    finally:
        await server.client.aclose()
        for lane in server.lanes.values():
            await lane.batcher.drain(0)
        server.encoders.close()


@asynccontextmanager
async def listening(server: Server, tls: Tls | None = None) -> AsyncIterator[int]:
    """The same behind a real socket: its port."""
    sock = bind("127.0.0.1", 0)
    running = HttpServer(configure(server.app, 1, tls))
    task = asyncio.create_task(running.serve(sockets=[sock]))
    while not running.started:
        await asyncio.sleep(0.005)
    try:
        yield sock.getsockname()[1]
    finally:
        running.should_exit = True
        await task
