"""HTTP/1.1 as bytes, as little of it as a load generator needs: a request made once, an answer found whole."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from httptools import HttpParserError, HttpResponseParser


class Answer(NamedTuple):
    """One whole answer."""

    status: int
    body: bytes
    keep_alive: bool


class BrokenAnswer(Exception):
    """What came is not one HTTP answer."""


def request_bytes(host: str, path: str, body: bytes, headers: Mapping[str, str] | None = None) -> bytes:
    """A whole POST request; sending it again costs one write."""
    lines = [
        f"POST {path} HTTP/1.1",
        f"host: {host}",
        "content-type: application/json",
        f"content-length: {len(body)}",
        *(f"{name}: {value}" for name, value in (headers or {}).items()),
    ]
    return "\r\n".join(lines).encode("latin-1") + b"\r\n\r\n" + body


class AnswerReader:
    """Finds the end of an answer in what a connection receives. One answer at a time: nothing is pipelined."""

    __slots__ = ("_answer", "_is_framed", "_parser", "_parts")

    def __init__(self) -> None:
        self._parser = HttpResponseParser(self)
        self._parts: list[bytes] = []
        self._is_framed = False
        self._answer: Answer | None = None

    def feed(self, data: bytes) -> Answer | None:
        """The answer when these bytes complete it. Raises BrokenAnswer."""
        try:
            self._parser.feed_data(data)
        except HttpParserError as error:
            raise BrokenAnswer(f"not an HTTP answer: {error.__context__ or error}") from error
        answer = self._answer
        if answer is not None:
            self._parts, self._is_framed, self._answer = [], False, None
        return answer

    # What the parser calls, in this order.

    def on_message_begin(self) -> None:
        if self._answer is not None:
            raise BrokenAnswer("more bytes came than the answer has")

    def on_header(self, name: bytes, value: bytes) -> None:
        if name.lower() in (b"content-length", b"transfer-encoding"):
            self._is_framed = True

    def on_headers_complete(self) -> None:
        if not self._is_framed:  # it would end with the connection, which stays
            raise BrokenAnswer("the answer says neither its length nor that it is chunked")

    def on_body(self, body: bytes) -> None:
        self._parts.append(body)

    def on_message_complete(self) -> None:
        # Only here the parser still knows whether the connection stays.
        keep_alive = self._parser.should_keep_alive()
        self._answer = Answer(self._parser.get_status_code(), b"".join(self._parts), keep_alive)
