"""The life of a server: answer probes, load beside it, serve, and drain at the end. Signals are its own."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from typing import Any

import uvicorn

from serving.api.app import App
from serving.api.state import Limits, Service, State
from serving.errors import ServingError
from serving.http.listen import Tls, configure
from serving.watch.metrics import Metrics
from serving.watch.tracing import Tracing

log = logging.getLogger(__name__)

DRAIN_S = 10.0


class Server(uvicorn.Server):
    """Signals are ours: uvicorn would stop listening at once, we drain first."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


async def serve(
    sock: socket.socket,
    load: Callable[[Metrics, Callable[[str], None]], Service[Any]],
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
    server = Server(configure(App(state, metrics, limits, tracing), drain_s, tls))
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
            gc.freeze()  # what is loaded stays: no collection needs to look at it again
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


def _in_thread(loop: asyncio.AbstractEventLoop, work: Callable[[], Service[Any]]) -> asyncio.Future[Service[Any]]:
    """Run in a daemon thread: unlike an executor's, it does not hold the process when a signal comes while loading."""
    future: asyncio.Future[Service[Any]] = loop.create_future()

    def settle(result: Service[Any] | BaseException) -> None:
        if not future.done():
            if isinstance(result, BaseException):
                future.set_exception(result)
            else:
                future.set_result(result)

    def run() -> None:
        result: Service[Any] | BaseException
        try:
            result = work()
        except BaseException as error:
            result = error
        with contextlib.suppress(RuntimeError):  # the loop has closed: nobody waits
            loop.call_soon_threadsafe(settle, result)

    threading.Thread(target=run, name="loader", daemon=True).start()
    return future
