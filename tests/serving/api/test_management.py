"""The GET routes: what operators and probes read."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import pytest

from tests.support.api import Server, serving
from tests.support.profiles import Tiny
from tests.support.tiny_models import embedder


@pytest.fixture
async def server(tiny: Tiny) -> AsyncIterator[Server]:
    async with serving(embedder(tiny)) as server:
        yield server


async def test_management_routes_answer_what_the_operator_reads(server: Server) -> None:
    async def get(path: str) -> Any:
        response = await server.client.get(path)
        assert response.status_code == 200
        return response.json()

    (model,) = (await get("/v1/models"))["data"]
    assert model["id"] == model["root"] == "tiny"
    assert model["object"] == "model"
    assert model["max_model_len"] == 32
    metadata = await get("/v1/metadata")
    assert metadata["selectedModelProfileId"] == "f" * 64
    assert metadata["modelInfo"][0]["shortName"] == "tiny:0.1.0"
    assert {"assetInfo", "licenseInfo", "repository_override", "version"} <= set(metadata)
    assert (await get("/v1/manifest"))["manifest_file"].startswith("schema_version")
    assert (await get("/v1/version"))["release"] == "0.1.0"
    for path, status in (("/v1/health/live", "live"), ("/v1/health/ready", "ready")):
        body = await get(path)
        assert {"object": "health.response", "ready": True, "status": status}.items() <= body.items()
        assert "message" in body
    assert (await server.client.get("/v1/license")).status_code == 404
