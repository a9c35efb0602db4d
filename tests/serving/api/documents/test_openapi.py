"""/openapi.json and /docs: every route is there, the examples work, the answers have the forms that are promised."""

from __future__ import annotations

import re
from collections.abc import Callable
from html.parser import HTMLParser
from typing import Any

import httpx
import jsonschema_rs
import msgspec
import pytest

from serving.api import app
from serving.api.routes.table import PATHS, POSTS
from tests.support.api import Server, serving
from tests.support.profiles import Tiny
from tests.support.tiny_models import Model, embedder, reranker, see_and_read

MODELS: dict[str, Callable[[Tiny], Model]] = {
    "embed": embedder,
    "rerank": lambda tiny: reranker(),
    "clip": lambda tiny: see_and_read(),
}
each_task = pytest.mark.parametrize("task", MODELS)


async def described(server: Server) -> Any:
    response = await server.client.get("/openapi.json")
    assert response.status_code == 200
    assert response.headers["content-type"] == "application/json"
    return response.json()


def problems(document: Any, path: str, response: httpx.Response) -> list[str]:
    """How a response differs from what the document promises."""
    operation = document["paths"][path][response.request.method.lower()]
    promised = operation["responses"].get(str(response.status_code))
    if promised is None:
        return [f"{response.status_code} is not documented"]
    media = response.headers["content-type"].partition(";")[0]
    if media not in promised["content"]:
        return [f"{media} is not documented"]
    if media != "application/json":
        return []
    schema = {**promised["content"][media]["schema"], "components": document["components"]}
    return [error.message for error in jsonschema_rs.Draft202012Validator(schema).iter_errors(response.json())]


def check(document: dict[str, Any]) -> None:
    import schemathesis  # takes a second, and only some tests need it

    schemathesis.openapi.from_dict(document).validate()


@each_task
async def test_the_document_is_valid_and_lists_exactly_the_routes_that_are_served(task: str, tiny: Tiny) -> None:
    async with serving(MODELS[task](tiny)) as server:
        document = await described(server)
        check(document)
        assert document["openapi"].startswith("3.1")
        gets = {*app.ALWAYS, *app.WHEN_LOADED, *app.METRICS}
        assert set(document["paths"]) == {*gets, *POSTS[task]}
        for path, item in document["paths"].items():
            assert set(item) == {"get" if path in gets else "post"}
        for target in re.findall(r'"#/components/(\w+)/([\w-]+)"', (await server.client.get("/openapi.json")).text):
            assert target[1] in document["components"][target[0]]


async def test_before_anything_is_loaded_every_route_of_every_task_is_described(tiny: Tiny) -> None:
    async with serving(embedder(tiny)) as server:
        server.state.service, server.state.message = None, "loading: fetch"
        document = await described(server)
        check(document)
        assert set(document["paths"]) >= PATHS
        assert (await server.client.get("/docs")).status_code == 200


@each_task
async def test_every_example_is_answered_in_the_form_that_is_promised(task: str, tiny: Tiny) -> None:
    async with serving(MODELS[task](tiny)) as server:
        document = await described(server)
        for path, item in document["paths"].items():
            if "post" not in item:
                continue
            content = item["post"]["requestBody"]["content"]["application/json"]
            schema = {**content["schema"], "components": document["components"]}
            assert jsonschema_rs.Draft202012Validator(schema).is_valid(content["example"])
            response = await server.client.post(path, json=content["example"])
            assert response.status_code == 200, response.text
            assert problems(document, path, response) == []


@each_task
async def test_the_management_routes_answer_in_the_form_that_is_promised(task: str, tiny: Tiny) -> None:
    async with serving(MODELS[task](tiny)) as server:
        document = await described(server)
        for state in ("ready", "draining", "loading"):
            server.state.draining = state == "draining"
            server.state.service = None if state == "loading" else server.service
            for path, item in document["paths"].items():
                if "get" in item:
                    assert problems(document, path, await server.client.get(path)) == [], (path, state)


async def test_every_refusal_has_the_form_that_is_promised(tiny: Tiny) -> None:
    async with serving(embedder(tiny)) as server:
        document = await described(server)
        send = server.client.post
        responses = [
            await server.embed(input=""),
            await server.embed(input="w1 " * 100),
            await server.embed(model="gpt"),
            await send("/v1/embeddings", content=b"{", headers={"content-type": "text/plain"}),
            await send("/v1/embeddings", content=b"", headers={"content-length": str(2**40)}),
        ]
        server.state.in_flight = 10**6
        responses.append(await server.embed())
        server.state.in_flight, server.state.draining = 0, True
        responses.append(await server.embed())
        assert [response.status_code for response in responses] == [400, 400, 404, 415, 413, 429, 503]
        for response in responses:
            assert problems(document, "/v1/embeddings", response) == []


async def test_the_document_says_what_this_model_does(tiny: Tiny) -> None:
    spec = msgspec.structs.replace(tiny.spec, matryoshka_dimensions=(8,), int8_range=0.5)

    async def fields(**options: Any) -> Any:
        async with serving(embedder(tiny), **options) as server:
            return (await described(server))["components"]["schemas"]["EmbeddingRequest"]["properties"]

    plain, rich = await fields(), await fields(spec=spec)
    assert plain["model"]["enum"] == [f"{o}tiny{e}" for e in ("", "-query", "-passage") for o in ("", "org/")]
    assert plain["dimensions"]["anyOf"][0]["enum"] == [16]
    assert rich["dimensions"]["anyOf"][0]["minimum"] == 1
    assert plain["embedding_type"]["anyOf"][0]["enum"] == ["float", "binary", "ubinary"]
    assert rich["embedding_type"]["anyOf"][0]["enum"] == ["float", "int8", "uint8", "binary", "ubinary"]
    assert plain["input"]["anyOf"][1]["maxItems"] == 20


async def test_it_is_written_once_and_kept(tiny: Tiny) -> None:
    async with serving(embedder(tiny)) as server:
        call = app.Call(body=b"", state=server.state, limits=server.app.limits)
        for path in ("/openapi.json", "/docs"):
            assert app.ALWAYS[path](call).body is app.ALWAYS[path](call).body


class Page(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.links: list[str] = []
        self.ids: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        for name, value in attrs:
            assert not name.startswith("on")
            if name in ("href", "src"):
                self.links.append(value or "")
            if name == "id":
                self.ids.append(value or "")


@each_task
async def test_the_page_for_people_stands_alone_and_names_every_route_and_form(task: str, tiny: Tiny) -> None:
    async with serving(MODELS[task](tiny)) as server:
        document = await described(server)
        response = await server.client.get("/docs")
        assert response.headers["content-type"] == "text/html; charset=utf-8"
        page = Page()
        page.feed(response.text)
        assert not {"script", "img", "iframe", "link", "object"} & set(page.tags)
        assert "url(" not in response.text
        assert "@import" not in response.text
        assert len(page.ids) == len(set(page.ids))
        for link in page.links:
            assert link == "/openapi.json" or (link[0] == "#" and link[1:] in page.ids)
        for path in document["paths"]:
            assert f"curl http://localhost:8000{path}" in response.text
        assert set(document["components"]["schemas"]) <= set(page.ids)


async def test_a_served_name_cannot_put_tags_into_the_page(tiny: Tiny) -> None:
    spec = msgspec.structs.replace(tiny.spec, served_name="<script>alert(1)</script>")
    async with serving(embedder(tiny), spec=spec) as server:
        assert "<script" not in (await server.client.get("/docs")).text
