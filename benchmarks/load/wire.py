"""HTTP/1.1 as bytes, as little of it as a load generator needs: a request made once, an answer found whole."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

HEAD_END = b"\r\n\r\n"


class Answer(NamedTuple):
    """One whole answer."""

    status: int
    body: bytes
    keep_alive: bool


class BrokenAnswer(Exception):
    """What came is not an HTTP answer that this reader knows."""


def request_bytes(host: str, path: str, body: bytes, headers: Mapping[str, str] | None = None) -> bytes:
    """A whole POST request; sending it again costs one write."""
    lines = [
        f"POST {path} HTTP/1.1",
        f"host: {host}",
        "content-type: application/json",
        f"content-length: {len(body)}",
        *(f"{name}: {value}" for name, value in (headers or {}).items()),
    ]
    return "\r\n".join(lines).encode("latin-1") + HEAD_END + body


class AnswerReader:
    """Finds the end of an answer in what a connection receives. One answer at a time: nothing is pipelined."""

    __slots__ = ("_buffer", "_head_end", "_length")

    def __init__(self) -> None:
        self._buffer = b""
        self._head_end = -1  # once the head has come
        self._length = -1  # of head and body; -1: not known, or chunked

    def feed(self, data: bytes) -> Answer | None:
        """The answer when these bytes complete it. Raises BrokenAnswer."""
        # Answers that come in one piece, nearly all, are never copied; the few large ones are joined a few times.
        whole = self._buffer + data if self._buffer else data
        if self._head_end < 0:
            end = whole.find(HEAD_END)
            if end < 0:
                self._buffer = whole
                return None
            self._head_end = end + 4
            self._length = _length(whole[:end].lower(), self._head_end)
        if self._length < 0:
            body = _unchunked(whole, self._head_end)
        else:
            if len(whole) > self._length:
                raise BrokenAnswer(f"{len(whole) - self._length} bytes more than the answer has")
            body = whole[self._head_end :] if len(whole) == self._length else None
        if body is None:
            self._buffer = whole
            return None
        head = whole[: self._head_end].lower()
        answer = Answer(_status(head), body, b"connection: close" not in head)
        self._buffer, self._head_end, self._length = b"", -1, -1
        return answer


def _status(head: bytes) -> int:
    if not head.startswith(b"http/1.") or not head[9:12].isdigit():
        raise BrokenAnswer(f"not an HTTP answer: {head[:40]!r}")
    return int(head[9:12])


def _length(head: bytes, head_size: int) -> int:
    """Of head and body together; -1: chunked."""
    place = head.find(b"\r\ncontent-length:")
    if place >= 0:
        value = head[place + 17 :].split(b"\r\n", 1)[0].strip()
        if not value.isdigit():
            raise BrokenAnswer(f"content-length is {value!r}")
        return head_size + int(value)
    if b"\r\ntransfer-encoding: chunked" in head:
        return -1
    raise BrokenAnswer("the answer says neither its length nor that it is chunked")


def _unchunked(whole: bytes, start: int) -> bytes | None:
    """The body of a chunked answer, None while some of it is missing."""
    if not whole.endswith(b"0\r\n\r\n"):
        return None
    parts: list[bytes] = []
    while True:
        end = whole.find(b"\r\n", start)
        if end < 0:
            return None
        try:
            size = int(whole[start:end].split(b";", 1)[0], 16)
        except ValueError as error:
            raise BrokenAnswer(f"the size of a chunk is {whole[start:end][:20]!r}") from error
        if size == 0:
            return b"".join(parts)
        parts.append(whole[end + 2 : end + 2 + size])
        start = end + 2 + size + 2
