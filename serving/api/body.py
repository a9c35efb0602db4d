"""Read a request's body: which media are taken, and how much of them."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from serving.api import errors
from serving.api.state import Limits

Message = MutableMapping[str, Any]  # ASGI's
Receive = Callable[[], Awaitable[Message]]


class ClientGone(Exception):
    """The client closed its connection; nobody reads an answer."""


def check_media(headers: dict[bytes, bytes]) -> None:
    """Raise Problem (415) for what is not plain JSON."""
    media = headers.get(b"content-type", b"application/json").split(b";")[0].strip().lower()
    if media != b"application/json":
        raise errors.unsupported("the body must be JSON; send content-type: application/json")
    if headers.get(b"content-encoding", b"identity").strip().lower() != b"identity":
        raise errors.unsupported("the body must not be compressed; leave content-encoding out")


async def read_body(headers: dict[bytes, bytes], receive: Receive, limits: Limits) -> bytes:
    """The whole body. Raises ClientGone, and Problem (413) while reading, before more of it is held."""
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
