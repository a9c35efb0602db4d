"""The ASGI application: routes, limits while reading, deadlines, disconnects, one log line and count per request."""

from __future__ import annotations

import asyncio
import logging
import random
import re
import time
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from serving.api import errors, management
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
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
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
WATCH_AFTER_S = 0.02  # an answer that comes sooner is not worth a task that looks whether the client is still there
UNKNOWN = "other"  # the route's label for every other path: labels must not come from requests

_REQUEST_ID = re.compile(rb"[A-Za-z0-9._-]{1,64}")


class ClientGone(Exception):
    """The client closed its connection; nobody reads an answer."""


class App:
    """Raw ASGI: the whole of a request passes through __call__."""

    def __init__(self, state: State, metrics: Metrics, limits: Limits, tracing: Tracing | None = None) -> None:
        self.state, self.metrics, self.limits, self.tracing = state, metrics, limits, tracing

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            raise RuntimeError(f"{scope['type']} is not served")
        started = time.monotonic()
        headers = dict(scope["headers"])
        request_id = _request_id(headers)
        route = _route(scope["path"])
        self.metrics.in_flight.inc()
        status, num_tokens, num_items = 499, 0, 0  # as nginx counts a client that left
        timing = Timing()
        try:
            try:
                response = await self._answer(route, scope["method"], headers, receive, timing)
            except ClientGone:
                return
            except Exception as error:
                problem = errors.problem(error)
                if problem.status == 500:
                    log.exception("request failed", extra={FIELDS: {"request_id": request_id}})
                response = problem.response()
            status, num_tokens, num_items = response.status, response.num_tokens, response.num_items
            await _send(send, response, request_id)
        finally:
            self.metrics.in_flight.dec()
            seconds = time.monotonic() - started
            self.metrics.answered(route, status, seconds)
            self.metrics.prompt_tokens.inc(num_tokens)
            if (route in PATHS or route == UNKNOWN) and (self.tracing is not None or log.isEnabledFor(logging.INFO)):
                fields: dict[str, Any] = {
                    "request_id": request_id,
                    "route": route,
                    "status": status,
                    "duration_ms": round(seconds * 1000, 2),
                    "queue_ms": round(timing.queue_s * 1000, 2),
                    "engine_ms": round(timing.engine_s * 1000, 2),
                    "prompt_tokens": num_tokens,
                    "num_items": num_items,
                }
                if self.tracing is not None and route in PATHS:
                    fields["trace_id"] = self.tracing.record(
                        method=scope["method"],
                        route=route,
                        status=status,
                        seconds=seconds,
                        headers=headers,
                        attributes={
                            "enginery.request_id": request_id,
                            "enginery.num_items": num_items,
                            "enginery.num_tokens": num_tokens,
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

    async def _answer(
        self, route: str, method: str, headers: dict[bytes, bytes], receive: Receive, timing: Timing
    ) -> Response:
        if route == UNKNOWN:
            raise errors.not_found()
        if route in PATHS:
            if method != "POST":
                raise errors.not_allowed("POST")
            return await self._post(route, headers, receive, timing)
        if method not in ("GET", "HEAD"):
            raise errors.not_allowed("GET, HEAD")
        if route in METRICS:
            return Response(body=self.metrics.text(), content_type="text/plain; version=0.0.4; charset=utf-8")
        call = Call(body=b"", state=self.state, limits=self.limits)
        if route in ALWAYS:
            return ALWAYS[route](call)
        return WHEN_LOADED[route](call, self._service(allow_draining=True))

    async def _post(self, route: str, headers: dict[bytes, bytes], receive: Receive, timing: Timing) -> Response:
        service = self._service()
        task = service.spec.task
        post = POSTS[task].get(route)
        if post is None:
            raise errors.not_of_this_model(route, task, tuple(POSTS[task]))
        _check_media(headers)
        if self.state.in_flight >= self.limits.max_in_flight:
            raise self._busy()
        self.state.in_flight += 1
        try:
            async with _Deadline(receive, self.limits) as deadline:
                body = await _read_body(headers, receive, self.limits)
                deadline.body_is_read()
                call = Call(body=body, state=self.state, limits=self.limits, timing=timing)
                return await post.answer(call, service)
        finally:
            self.state.in_flight -= 1

    def _service(self, *, allow_draining: bool = False) -> Service[Any]:
        if self.state.service is None or (self.state.draining and not allow_draining):
            raise errors.not_ready(f"not ready: {self.state.message}", draining=self.state.draining)
        return self.state.service


def _route(path: str) -> str:
    known = path in PATHS or path in METRICS or path in ALWAYS or path in WHEN_LOADED
    return path if known else UNKNOWN


def _request_id(headers: dict[bytes, bytes]) -> str:
    """The client's if it is harmless, else a new one: it goes into logs and headers."""
    given = headers.get(b"x-request-id", b"")
    return given.decode("ascii") if _REQUEST_ID.fullmatch(given) else _new_id()


def _new_id() -> str:
    return f"{random.getrandbits(128):032x}"  # names a request, and need not be secret


def _check_media(headers: dict[bytes, bytes]) -> None:
    media = headers.get(b"content-type", b"application/json").split(b";")[0].strip().lower()
    if media != b"application/json":
        raise errors.unsupported("the body must be JSON; send content-type: application/json")
    if headers.get(b"content-encoding", b"identity").strip().lower() != b"identity":
        raise errors.unsupported("the body must not be compressed; leave content-encoding out")


async def _read_body(headers: dict[bytes, bytes], receive: Receive, limits: Limits) -> bytes:
    """The whole body. The limit fires while reading, before more of it is held."""
    declared = headers.get(b"content-length", b"0")
    if declared.isdigit() and (len(declared) > 18 or int(declared) > limits.max_body_bytes):
        raise errors.too_large(limits.max_body_bytes)
    body = bytearray()
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise ClientGone
        body += message.get("body", b"")
        if len(body) > limits.max_body_bytes:
            raise errors.too_large(limits.max_body_bytes)
        if not message.get("more_body", False):
            return bytes(body)


class _Deadline:
    """Ends a request whose body comes too slowly, whose answer takes too long, or whose client has left.

    A client's leaving takes its texts out of the queue.
    """

    def __init__(self, receive: Receive, limits: Limits) -> None:
        self._receive, self._limits = receive, limits
        self._loop = asyncio.get_running_loop()
        self._timeout = asyncio.timeout(limits.body_timeout_s)
        self._watching: asyncio.TimerHandle | None = None
        self._leaving: asyncio.Task[None] | None = None

    async def __aenter__(self) -> _Deadline:
        await self._timeout.__aenter__()
        return self

    def body_is_read(self) -> None:
        """From now on the answer's time runs."""
        self._timeout.reschedule(self._loop.time() + self._limits.request_timeout_s)
        self._watching = self._loop.call_later(WATCH_AFTER_S, self._watch)

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: Any) -> None:
        gone = self._leaving is not None and self._leaving.done()
        if self._watching is not None:
            self._watching.cancel()
        if self._leaving is not None:
            self._leaving.remove_done_callback(self._end)
            self._leaving.cancel()
        try:
            await self._timeout.__aexit__(kind, error, trace)
        except TimeoutError:
            if self._watching is None:
                raise errors.too_slow() from None
            if gone:
                raise ClientGone from None
            raise errors.deadline(self._limits.request_timeout_s) from None

    def _watch(self) -> None:
        self._leaving = self._loop.create_task(_wait_gone(self._receive))
        self._leaving.add_done_callback(self._end)

    def _end(self, leaving: asyncio.Task[None]) -> None:
        self._timeout.reschedule(self._loop.time())


async def _wait_gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


async def _send(send: Send, response: Response, request_id: str) -> None:
    headers = [
        (b"content-type", response.content_type.encode()),
        (b"content-length", str(len(response.body)).encode()),
        (b"x-request-id", request_id.encode()),
        *((name.encode(), value.encode()) for name, value in response.headers.items()),
    ]
    await send({"type": "http.response.start", "status": response.status, "headers": headers})
    await send({"type": "http.response.body", "body": response.body})
