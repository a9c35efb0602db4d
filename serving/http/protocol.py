"""HTTP/1.1 as uvicorn speaks it, with limits on the head of a request and a cheap answer when the server is busy."""

from __future__ import annotations

import asyncio
from typing import Any, cast

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from serving.api.app import App

HEAD_TIMEOUT_S = 10.0  # for a request's line and headers; uvicorn itself waits for ever
MAX_HEAD_BYTES = 16 * 1024
MAX_HEADERS = 100


class LimitedProtocol(HttpToolsProtocol):
    """uvicorn's HTTP/1.1 with limits on the head of a request: its time, its size, its number of headers."""

    _head_timer: asyncio.TimerHandle | None = None
    _head_bytes = 0
    _in_head = True
    _refusal: bytes | None = None  # of the request that is being read, which nobody else hears of

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        self._start_timer()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_timer()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if self._in_head:
            self._head_bytes += len(data)
        super().data_received(data)
        if self._in_head and self._head_bytes > MAX_HEAD_BYTES and not self.transport.is_closing():
            self._refuse("431 Request Header Fields Too Large")

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._in_head = True
        self._start_timer()

    def on_headers_complete(self) -> None:
        self._in_head, self._head_bytes = False, 0
        self._stop_timer()
        if len(self.headers) > MAX_HEADERS:
            raise ValueError("too many headers")  # the parser passes it on and uvicorn answers 400
        # A head that came in one piece was never seen unfinished.
        if len(self.url) + sum(len(name) + len(value) + 4 for name, value in self.headers) > MAX_HEAD_BYTES:
            self._refuse("431 Request Header Fields Too Large")
            raise ValueError("too large a head")
        if (self.cycle is None or self.cycle.response_complete) and not self.expect_100_continue:
            self._refusal = self._app().refuse_at_once(self.parser.get_method(), self.url)
            if self._refusal is not None:
                self._start_timer()  # the rest of it is read, so that the connection can go on
                return
        super().on_headers_complete()
        self.cycle.transport = cast(asyncio.Transport, _InOnePiece(self.transport, self.loop))

    def on_body(self, body: bytes) -> None:
        if self._refusal is None:
            super().on_body(body)

    def on_message_complete(self) -> None:
        if self._refusal is None:
            super().on_message_complete()
            return
        self._stop_timer()
        if not self.transport.is_closing():
            self.transport.write(self._refusal)
            if not self.parser.should_keep_alive():
                self.transport.close()
            else:
                self._unset_keepalive_if_required()
                self.timeout_keep_alive_task = self.loop.call_later(
                    self.timeout_keep_alive, self.timeout_keep_alive_handler
                )
        self._refusal = None

    def _app(self) -> App:
        return cast(App, self.config.loaded_app)

    def send_400_response(self, msg: str) -> None:
        if not self.transport.is_closing():  # else it has been answered
            super().send_400_response(msg)

    def _start_timer(self) -> None:
        self._stop_timer()
        self._head_timer = self.loop.call_later(HEAD_TIMEOUT_S, self._refuse, "408 Request Timeout")

    def _stop_timer(self) -> None:
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None

    def _refuse(self, status: str) -> None:
        if not self.transport.is_closing():
            self.transport.write(f"HTTP/1.1 {status}\r\nconnection: close\r\ncontent-length: 0\r\n\r\n".encode())
            self.transport.close()


class _InOnePiece:
    """A transport that writes an answer's head together with what follows: two writes are two system calls."""

    def __init__(self, transport: asyncio.Transport, loop: asyncio.AbstractEventLoop) -> None:
        self._transport, self._loop = transport, loop
        self._head: bytes | None = None  # b"" once it is written

    def write(self, data: bytes) -> None:
        if self._head is None:
            self._head = data
            self._loop.call_soon(self._flush)  # an answer may have no body
        else:
            self._transport.writelines((self._head, data))
            self._head = b""

    def _flush(self) -> None:
        if self._head:
            self._transport.write(self._head)
            self._head = b""

    def close(self) -> None:
        self._flush()
        self._transport.close()

    def is_closing(self) -> bool:
        return self._transport.is_closing()

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        return self._transport.get_extra_info(name, default)
