"""The socket, TLS, the HTTP parser's limits, and signals: listen first, load beside it, drain at the end."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import uvicorn
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from serving.api.app import App
from serving.api.state import Limits, Service, State
from serving.errors import ServingError
from serving.metrics import Metrics
from serving.tracing import Tracing

log = logging.getLogger(__name__)

DRAIN_S = 10.0
HEAD_TIMEOUT_S = 10.0  # for a request's line and headers; uvicorn itself waits for ever
MAX_HEAD_BYTES = 16 * 1024
MAX_HEADERS = 100


class ListenError(ServingError):
    """The address cannot be listened on, or not with these certificates."""

    exit_code = 27


@dataclass(frozen=True, kw_only=True)
class Tls:
    """Files in PEM."""

    key: Path
    certificates: Path  # the server's, and those between it and its authority
    client_authorities: Path | None = None  # given: clients must show a certificate that one of these signed


class LimitedProtocol(HttpToolsProtocol):
    """uvicorn's HTTP/1.1 with limits on the head of a request: its time, its size, its number of headers."""

    _head_timer: asyncio.TimerHandle | None = None
    _head_bytes = 0
    _in_head = True

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
        super().on_headers_complete()
        self.cycle.transport = cast(asyncio.Transport, _InOnePiece(self.transport, self.loop))

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


class _Server(uvicorn.Server):
    """Signals are ours: uvicorn would stop listening at once, we drain first."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


def bind(host: str, port: int) -> socket.socket:
    """A listening address, before anything slow happens. Raises ListenError."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    sock = socket.socket(family, socket.SOCK_STREAM)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        sock.bind((host, port))
    except OSError as error:
        sock.close()
        raise ListenError(
            f"cannot listen on {host}:{port}: {error.strerror}; choose another port with NIM_HTTP_API_PORT"
        ) from error
    return sock


async def serve(
    sock: socket.socket,
    load: Callable[[Metrics, Callable[[str], None]], Service],
    limits: Limits,
    drain_s: float = DRAIN_S,
    *,
    tls: Tls | None = None,
    tracing: Tracing | None = None,
) -> int:
    """Serve until SIGTERM or SIGINT; the exit code. load runs in a thread while probes are answered already.

    Raises ListenError when the certificates cannot be used.
    """
    loop = asyncio.get_running_loop()
    state, metrics = State(), Metrics()
    server = _Server(_config(App(state, metrics, limits, tracing), drain_s, tls))
    stop = asyncio.Event()

    def on_signal() -> None:
        if stop.is_set():  # the second one: now
            server.force_exit = True
            forced.set()
        stop.set()

    forced = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, on_signal)

    def say(message: str) -> None:
        state.message = message

    listening = asyncio.create_task(server.serve(sockets=[sock]))
    loading = _in_thread(loop, lambda: load(metrics, say))
    stopping = asyncio.create_task(stop.wait())
    code = 0
    tasks: set[asyncio.Future[Any]] = {loading, stopping, listening}
    await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    if loading.done():
        try:
            state.service = loading.result()
            state.message = "ready"
            log.info("Ready: %s on port %d", state.service.profile.name, sock.getsockname()[1])
            await asyncio.wait({stopping, listening}, return_when=asyncio.FIRST_COMPLETED)
        except ServingError as error:
            state.message = "failed to start; the log has the cause"
            log.error("%s", error)
            code = error.exit_code
        except Exception:
            state.message = "failed to start; the log has the cause"
            log.exception("the start failed unexpectedly")
            code = ServingError.exit_code
    state.draining, state.message = True, "draining"
    metrics.ready.set(0)
    if state.service is not None:
        await _drain(state, drain_s, forced)
    server.should_exit = True
    await listening
    return code


async def _drain(state: State, drain_s: float, forced: asyncio.Event) -> None:
    """Finish what was taken; a second signal or the deadline ends it."""
    assert state.service is not None

    async def finish() -> None:
        while state.in_flight:
            await asyncio.sleep(0.01)

    finishing = asyncio.create_task(finish())
    forcing = asyncio.create_task(forced.wait())
    done, _ = await asyncio.wait({finishing, forcing}, timeout=drain_s, return_when=asyncio.FIRST_COMPLETED)
    if finishing not in done:
        log.warning("%d requests were not finished", state.in_flight)
    for task in (finishing, forcing):
        task.cancel()
    for lane in state.service.lanes.values():
        await lane.batcher.drain(0)
    state.service.encoders.close()


def _config(app: App, drain_s: float, tls: Tls | None = None) -> uvicorn.Config:
    config = uvicorn.Config(
        app,
        http=LimitedProtocol,
        loop="uvloop",
        ws="none",
        lifespan="off",
        log_config=None,
        access_log=False,
        proxy_headers=False,
        server_header=False,
        timeout_keep_alive=75,  # longer than the idle time of usual load balancers
        timeout_graceful_shutdown=max(1, int(min(drain_s, 2))),
        ssl_keyfile=tls.key if tls else None,
        ssl_certfile=tls.certificates if tls else None,
        ssl_ca_certs=tls.client_authorities if tls else None,
        ssl_cert_reqs=ssl.CERT_REQUIRED if tls and tls.client_authorities else ssl.CERT_NONE,
    )
    try:
        config.load()  # reads the certificates
    except OSError as error:  # ssl.SSLError is one
        assert tls is not None
        named = ", ".join(str(path) for path in (tls.certificates, tls.key, tls.client_authorities) if path)
        raise ListenError(
            f"TLS does not start with {named}: {error}; NIM_SSL_CERTS_PATH and NIM_SSL_KEY_PATH name a certificate and "
            "its key in PEM, NIM_SSL_CA_CERTS_PATH the authorities of clients"
        ) from error
    return config


def _in_thread(loop: asyncio.AbstractEventLoop, work: Callable[[], Service]) -> asyncio.Future[Service]:
    """Run in a daemon thread: unlike an executor's, it does not hold the process when a signal comes while loading."""
    future: asyncio.Future[Service] = loop.create_future()

    def settle(result: Service | BaseException) -> None:
        if not future.done():
            if isinstance(result, BaseException):
                future.set_exception(result)
            else:
                future.set_result(result)

    def run() -> None:
        result: Service | BaseException
        try:
            result = work()
        except BaseException as error:
            result = error
        with contextlib.suppress(RuntimeError):  # the loop has closed: nobody waits
            loop.call_soon_threadsafe(settle, result)

    threading.Thread(target=run, name="loader", daemon=True).start()
    return future
