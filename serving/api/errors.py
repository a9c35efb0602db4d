"""Error to HTTP status: every way a request fails, and the body that clients of NIM know."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import orjson

from serving.api.state import Response
from serving.batching.tickets import Draining, QueueFull
from serving.tasks.images import BadImage
from serving.tasks.text import TextTooLong, TextWithoutTokens


class Problem(Exception):
    """A request that is answered with an error status."""

    def __init__(
        self,
        status: int,
        kind: str,
        message: str,
        *,
        detail: object = None,
        headers: Mapping[str, str] | None = None,
        error: str | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.kind, self.message, self.detail = status, kind, message, detail
        self.headers, self.error = dict(headers or {}), error

    def response(self) -> Response:
        body: dict[str, object] = {"object": "error", "message": self.message, "type": self.kind}
        if self.detail is not None:
            body["detail"] = self.detail
        if self.error is not None:
            body["error"] = self.error
        return Response(status=self.status, body=orjson.dumps(body), headers=self.headers)


def invalid(message: str, *loc: str | int, kind: str = "value_error") -> Problem:
    """400 that names the place in the body."""
    detail = {"type": kind, "loc": ["body", *loc], "msg": message}
    return Problem(400, "request_validation_error", message, detail=detail)


def not_found() -> Problem:
    return Problem(404, "not_found", "there is no such route here; /docs lists those that are")


def not_of_this_model(route: str, task: str, routes: Sequence[str]) -> Problem:
    message = f"{route} is not for this model, whose task is {task}; use {' or '.join(routes)}"
    return Problem(404, "not_found", message)


def not_allowed(methods: str) -> Problem:
    return Problem(405, "method_not_allowed", f"this route takes {methods}", headers={"allow": methods})


def too_large(limit: int) -> Problem:
    message = f"the body is larger than {limit} bytes; send fewer or shorter texts"
    return Problem(413, "body_too_large", message, headers={"connection": "close"})


def too_slow() -> Problem:
    return Problem(408, "body_timeout", "the body did not arrive in time", headers={"connection": "close"})


def unsupported(message: str) -> Problem:
    return Problem(415, "unsupported_media_type", message)


def not_ready(message: str, *, draining: bool) -> Problem:
    headers = {"connection": "close"} if draining else {}
    return Problem(503, "not_ready", message, headers={"retry-after": "1", **headers})


def busy(message: str, retry_after_s: int) -> Problem:
    return Problem(429, "overloaded", message, headers={"retry-after": str(retry_after_s)})


def deadline(seconds: float) -> Problem:
    return Problem(504, "deadline_exceeded", f"no answer within {seconds:g} s; send fewer texts or try again")


def too_long(error: TextTooLong, *loc: str | int) -> Problem:
    detail = {
        "type": "input_too_long",
        "loc": ["body", *loc],
        "msg": str(error),
        "ctx": {"length": error.length, "unit": error.unit, "limit": error.limit},
    }
    # `error` is the field that NIM's clients read, and they look for words of this message.
    return Problem(400, "input_too_long", str(error), detail=detail, error=str(error))


def problem(error: Exception) -> Problem:
    """What any exception becomes. One that is not known is ours: 500, and its text stays in the log."""
    match error:
        case Problem():
            return error
        case TextTooLong():
            return too_long(error, "input", error.index)
        case BadImage():
            return invalid(f"input {error.index}: {error.why}", "input", error.index, kind="image_invalid")
        case ExceptionGroup():  # of the parts of one request: the first tells enough
            return problem(error.exceptions[0])
        case TextWithoutTokens():
            return invalid(str(error), "input", error.index)
        case QueueFull():
            return busy(str(error), error.retry_after_s)
        case Draining():
            return not_ready(str(error), draining=True)
        case _:
            return Problem(500, "internal_error", "the server could not answer; its log has the cause")
