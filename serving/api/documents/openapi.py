"""GET /openapi.json: OpenAPI 3.1 of the routes, true to what this server does with the model that it serves."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import orjson

import serving
from serving.api.documents.answers import SCHEMAS
from serving.api.documents.requests import Facts, facts_of, request_schemas
from serving.api.documents.schema import Schema, ref
from serving.api.routes.base import Post
from serving.api.state import Call, Response

JSON = "application/json"
ABOUT = """Vectors and rankings as NVIDIA's NIM, OpenAI, Cohere, Jina and text-embeddings-inference give them.

Every answer carries `x-request-id`, the request's own if that was 1 to 64 letters, digits, dots, dashes or
underscores. Besides what the routes list: 404 an unknown route; 405, with `allow`, another method; 431 and 408 a head
over 16 KiB, or slower than 10 s; 400 what is not HTTP. The last three have no body of ours.
"""
ERRORS: dict[int, tuple[str, tuple[str, ...]]] = {  # status -> when, its values of `type`
    400: (
        "The body is no request, or it cannot be answered: `detail.loc` names the place. A text that is too long says "
        "`exceeds maximum allowed token size`.",
        ("request_validation_error", "input_too_long"),
    ),
    404: (
        "The model's name is not one of this server's, or the route is not for its task.",
        ("model_not_found", "not_found"),
    ),
    408: ("The body did not arrive in time.", ("body_timeout",)),
    413: ("The body is too large.", ("body_too_large",)),
    415: ("The body is not JSON, or is compressed.", ("unsupported_media_type",)),
    429: ("Too much is waiting. Try again after `retry-after` seconds.", ("overloaded",)),
    500: ("The engine failed; the log has the cause.", ("internal_error",)),
    503: ("The server is loading or shutting down.", ("not_ready",)),
    504: ("No answer within the deadline.", ("deadline_exceeded",)),
}


def openapi_json(call: Call) -> Response:
    return Response(body=_dumped(facts_of(call)))


@lru_cache(maxsize=4)
def _dumped(facts: Facts) -> bytes:
    return orjson.dumps(document(facts))


@lru_cache(maxsize=4)
def document(facts: Facts) -> Schema:
    """The whole document. Do not change it: it is kept."""
    model = facts.names[0] if facts.names else "MODEL"
    return {
        "openapi": "3.1.0",
        "info": {"title": "Enginery", "version": serving.__version__, "description": ABOUT},
        "servers": [{"url": "/"}],
        "tags": [{"name": "inference"}, {"name": "management"}],
        "paths": {**{path: _post(post, model) for path, post in facts.posts.items()}, **_gets()},
        "components": {"schemas": {**SCHEMAS, **request_schemas(facts)}, "headers": _HEADERS},
    }


_HEADERS: Schema = {
    "request-id": {"description": "In the log, too.", "schema": {"type": "string"}},
    "retry-after": {"description": "Seconds.", "required": True, "schema": {"type": "integer", "minimum": 1}},
}


def _post(post: Post[Any], model: str) -> Schema:
    """With an example that this server answers."""
    body = {"required": True, "content": {JSON: {"schema": ref(post.request.__name__), "example": post.example(model)}}}
    responses = {"200": _answer("The answer.", post.answers)} | {str(status): _refusal(status) for status in ERRORS}
    return {
        "post": {
            "operationId": post.operation,
            "tags": ["inference"],
            "summary": post.summary,
            "requestBody": body,
            "responses": responses,
        }
    }


def _gets() -> Schema:
    health = ref("Health")
    not_ready = {"503": _answer("Not ready: loading, or shutting down.", health)}
    text = {"text/plain": {"schema": {"type": "string"}}}
    unavailable = {"503": _refusal(503)}
    return {
        "/v1/health/live": _get("live", "200 while the process answers", _answer("It lives.", health)),
        "/v1/health/ready": _get("ready", "200 once a proved engine serves", _answer("It serves.", health), not_ready),
        "/v1/models": _get("models", "The model", _answer("One entry.", ref("Models")), unavailable),
        "/v1/metadata": _get("metadata", "What runs here", _answer("It.", ref("Metadata")), unavailable),
        "/v1/version": _get("version", "The release", _answer("It.", ref("Version"))),
        "/v1/license": _get(
            "license",
            "The model's license",
            _answer("It.", ref("License")),
            {"404": _refusal(404, "The image carries none."), **unavailable},
        ),
        "/v1/manifest": _get("manifest", "The manifest as text", _answer("It.", ref("Manifest")), unavailable),
        "/v1/metrics": _get("metrics", "Prometheus' text", {**_answer("Metrics.", {}), "content": text}),
        "/metrics": _get("metricsToo", "The same", {**_answer("Metrics.", {}), "content": text}),
        "/openapi.json": _get("openapi", "This document", _answer("It.", {"type": "object"})),
        "/docs": _get(
            "docs",
            "This document for people",
            {**_answer("It.", {}), "content": {"text/html": {"schema": {"type": "string"}}}},
        ),
    }


def _get(operation: str, summary: str, answer: Schema, others: Schema | None = None) -> Schema:
    responses = {"200": answer, **(others or {})}
    return {"get": {"operationId": operation, "tags": ["management"], "summary": summary, "responses": responses}}


def _answer(description: str, schema: Schema) -> Schema:
    headers = {"x-request-id": {"$ref": "#/components/headers/request-id"}}
    return {"description": description, "headers": headers, "content": {JSON: {"schema": schema}}}


def _refusal(status: int, description: str = "") -> Schema:
    when, kinds = ERRORS[status]
    narrowed = {"allOf": [ref("Error"), {"type": "object", "properties": {"type": {"enum": list(kinds)}}}]}
    answer = _answer(description or when, narrowed)
    if status in (429, 503):
        answer["headers"]["retry-after"] = {"$ref": "#/components/headers/retry-after"}
    return answer
