"""The ASGI application: each request to its route, and one count and one log line for it."""

from __future__ import annotations

import logging
import random
import re
import time
from collections.abc import Awaitable, Callable, MutableMapping
from dataclasses import dataclass, field
from typing import Any

from serving.api import errors, management
from serving.api.body import ClientGone, Message, Receive, check_media, read_body
from serving.api.deadline import Deadline
from serving.api.documents.openapi import openapi_json
from serving.api.documents.page import page
from serving.api.routes.table import PATHS, POSTS
from serving.api.state import Call, Limits, Response, Service, State
from serving.batching.lanes import Timing
from serving.watch.logs import FIELDS
from serving.watch.metrics import Metrics
from serving.watch.tracing import Tracing

log = logging.getLogger(__name__)

Scope = MutableMapping[str, Any]
Send = Callable[[Message], Awaitable[None]]

# Answered in every state.
ALWAYS: dict[str, Callable[[Call], Response]] = {
    "/v1/health/live": management.live,
    "/v1/health/ready": management.ready,
    "/v1/version": management.version,
    "/openapi.json": openapi_json,
    "/docs": page,
}
# Answered once there is a service, while draining too.
WHEN_LOADED: dict[str, Callable[[Call, Service[Any]], Response]] = {
    "/v1/models": management.models,
    "/v1/metadata": management.metadata,
    "/v1/manifest": management.manifest,
    "/v1/license": management.license_text,
}
METRICS = ("/v1/metrics", "/metrics")
NO_ANSWER = Response(body=b"", status=499)  # as nginx counts a client that left
UNKNOWN = "other"  # the route's label for every other path: labels must not come from requests

_REQUEST_ID = re.compile(rb"[A-Za-z0-9._-]{1,64}")


@dataclass(slots=True)
class _Request:
    """One request, as its head says it."""

    route: str
    method: str
    headers: dict[bytes, bytes]
    request_id: str
    timing: Timing = field(default_factory=Timing)


class App:
    """Raw ASGI: the whole of a request passes through __call__."""

    def __init__(self, state: State, metrics: Metrics, limits: Limits, tracing: Tracing | None = None) -> None:
        self.state, self.metrics, self.limits, self.tracing = state, metrics, limits, tracing

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            raise RuntimeError(f"{scope['type']} is not served")
        started = time.monotonic()
        headers = dict(scope["headers"])
        request = _Request(_route(scope["path"]), scope["method"], headers, _request_id(headers))
        self.metrics.in_flight.inc()
        response = NO_ANSWER
        try:
            try:
                response = await self._answer(request, receive)
            except ClientGone:
                return
            except Exception as error:
                problem = errors.problem(error)
                if problem.status == 500:
                    log.exception("request failed", extra={FIELDS: {"request_id": request.request_id}})
                response = problem.response()
            await _send(send, response, request.request_id)
        finally:
            self.metrics.in_flight.dec()
            seconds = time.monotonic() - started
            self.metrics.answered(request.route, response.status, seconds)
            self.metrics.prompt_tokens.inc(response.num_tokens)
            if self.tracing is not None or log.isEnabledFor(logging.INFO):
                self._record(request, response, seconds)

    def _record(self, request: _Request, response: Response, seconds: float) -> None:
        """One line of the log for a request to the engine, or to no route; and its span where traces are sent."""
        is_post = request.route in PATHS
        if not is_post and request.route != UNKNOWN:
            return
        timing = request.timing
        fields: dict[str, Any] = {
            "request_id": request.request_id,
            "route": request.route,
            "status": response.status,
            "duration_ms": round(seconds * 1000, 2),
            "queue_ms": round(timing.queue_s * 1000, 2),
            "engine_ms": round(timing.engine_s * 1000, 2),
            "prompt_tokens": response.num_tokens,
            "num_items": response.num_items,
        }
        if self.tracing is not None and is_post:
            fields["trace_id"] = self.tracing.record(
                method=request.method,
                route=request.route,
                status=response.status,
                seconds=seconds,
                headers=request.headers,
                attributes={
                    "enginery.request_id": request.request_id,
                    "enginery.num_items": response.num_items,
                    "enginery.num_tokens": response.num_tokens,
                    "enginery.queue_seconds": timing.queue_s,
                    "enginery.engine_seconds": timing.engine_s,
                },
            )
        log.info("request", extra={FIELDS: fields})

    def refuse_at_once(self, method: bytes, path: bytes) -> bytes | None:
        """An answer in HTTP/1.1 to a request of which only the head is read, when as many are answered as may be.

        It is counted and not logged: what is turned away must cost next to nothing, or an overloaded server does little
        else.
        """
        route = path.decode("latin-1")
        if method != b"POST" or route not in PATHS or self.state.in_flight < self.limits.max_in_flight:
            return None
        response = self._busy().response()
        self.metrics.answered(route, response.status, 0.0)
        head = "".join(f"{name}: {value}\r\n" for name, value in response.headers.items())
        return (
            f"HTTP/1.1 429 Too Many Requests\r\ncontent-type: {response.content_type}\r\n{head}"
            f"content-length: {len(response.body)}\r\nx-request-id: {_new_id()}\r\n\r\n"
        ).encode("ascii") + response.body

    def _busy(self) -> errors.Problem:
        return errors.busy(f"{self.state.in_flight} requests are being answered; try again", 1)

    async def _answer(self, request: _Request, receive: Receive) -> Response:
        route, method = request.route, request.method
        if route == UNKNOWN:
            raise errors.not_found()
        if route in PATHS:
            if method != "POST":
                raise errors.not_allowed("POST")
            return await self._post(request, receive)
        if method not in ("GET", "HEAD"):
            raise errors.not_allowed("GET, HEAD")
        if route in METRICS:
            return Response(body=self.metrics.text(), content_type="text/plain; version=0.0.4; charset=utf-8")
        call = Call(body=b"", state=self.state, limits=self.limits)
        if route in ALWAYS:
            return ALWAYS[route](call)
        return WHEN_LOADED[route](call, self._service(allow_draining=True))

    async def _post(self, request: _Request, receive: Receive) -> Response:
        service = self._service()
        task = service.spec.task
        post = POSTS[task].get(request.route)
        if post is None:
            raise errors.not_of_this_model(request.route, task, tuple(POSTS[task]))
        check_media(request.headers)
        if self.state.in_flight >= self.limits.max_in_flight:
            raise self._busy()
        self.state.in_flight += 1
        try:
            async with Deadline(receive, self.limits) as deadline:
                body = await read_body(request.headers, receive, self.limits)
                deadline.body_is_read()
                call = Call(body=body, state=self.state, limits=self.limits, timing=request.timing)
                return await post.answer(call, service)
        finally:
            self.state.in_flight -= 1

    def _service(self, *, allow_draining: bool = False) -> Service[Any]:
        if self.state.service is None or (self.state.draining and not allow_draining):
            raise errors.not_ready(f"not ready: {self.state.message}", draining=self.state.draining)
        return self.state.service


def _route(path: str) -> str:
    is_route = path in PATHS or path in METRICS or path in ALWAYS or path in WHEN_LOADED
    return path if is_route else UNKNOWN


def _request_id(headers: dict[bytes, bytes]) -> str:
    """The client's if it is harmless, else a new one: it goes into logs and headers."""
    given = headers.get(b"x-request-id", b"")
    return given.decode("ascii") if _REQUEST_ID.fullmatch(given) else _new_id()


def _new_id() -> str:
    return f"{random.getrandbits(128):032x}"  # names a request, and need not be secret


async def _send(send: Send, response: Response, request_id: str) -> None:
    headers = [
        (b"content-type", response.content_type.encode()),
        (b"content-length", str(len(response.body)).encode()),
        (b"x-request-id", request_id.encode()),
        *((name.encode(), value.encode()) for name, value in response.headers.items()),
    ]
    await send({"type": "http.response.start", "status": response.status, "headers": headers})
    await send({"type": "http.response.body", "body": response.body})
