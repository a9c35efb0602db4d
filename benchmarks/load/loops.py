"""The two ways to load a server, over kept connections, with the time of every answer.

Closed loop: each connection sends its next request when the last was answered. Open loop: requests are due at times
that nothing the server does can move, and their time counts from when they were due, sent or not.
"""

from __future__ import annotations

import asyncio
import ssl
import time
from abc import ABC, abstractmethod
from array import array
from collections import deque
from typing import Any

from benchmarks.load.answers import Comparison
from benchmarks.load.arrivals import Timer, arrivals
from benchmarks.load.job import Job, Recording
from benchmarks.load.wire import AnswerReader, BrokenAnswer

MAX_NOTES = 8
CONNECT_TIMEOUT_S = 10.0
# Waking for each of many requests takes the cores that the server is to be measured with.
GRAIN_FROM, GRAIN_S = 2000, 0.001  # requests per second; what is due is sent once in this time
RECONNECT_S = 0.02  # a server that ends connections at once must not be asked in a tight loop
monotonic = time.monotonic


class Run(ABC):
    """One job under way: what is common to both loops."""

    def __init__(self, job: Job, loop: asyncio.AbstractEventLoop) -> None:
        self.job, self.loop = job, loop
        self.requests = job.requests
        self.compare = Comparison(job.expected).problem if job.expected is not None else None
        self.request, self.status = array("I"), array("H")
        self.due_s, self.latency_s, self.lag_s = array("d"), array("d"), array("d")
        self.num_sent = self.num_wrong = self.num_bytes = 0
        self.notes: list[str] = []
        self.connections: set[Connection] = set()
        self.done: asyncio.Future[None] = loop.create_future()
        self.start = self.end = self.cpu_before = 0.0
        self._tls = ssl.create_default_context() if job.tls else None

    async def connect(self) -> None:
        """One more connection; it reports itself idle when it is there."""
        connecting = self.loop.create_connection(
            lambda: Connection(self),
            self.job.host,
            self.job.port,
            ssl=self._tls,
            server_hostname=self.job.host if self._tls else None,
        )
        await asyncio.wait_for(connecting, CONNECT_TIMEOUT_S)

    def next_request(self) -> int:
        request = (self.job.first + self.num_sent) % len(self.requests)
        self.num_sent += 1
        return request

    def record(self, connection: Connection, status: int, body: bytes, now: float) -> None:
        request, due = connection.request, connection.due
        self.request.append(request)
        self.status.append(status)
        self.due_s.append(due - self.start)
        self.latency_s.append(now - due)
        self.lag_s.append(connection.sent - due)
        self.num_bytes += len(body)
        self.end = now
        if status == 200:
            if self.compare is not None and (problem := self.compare(request, body)) is not None:
                self.num_wrong += 1
                self.note(f"request {request}: {problem}")
        elif status:
            self.note(f"request {request}: status {status}: {body[:200].decode('utf-8', 'replace')}")

    def note(self, text: str) -> None:
        if len(self.notes) < MAX_NOTES:
            self.notes.append(text)

    @abstractmethod
    def idle(self, connection: Connection) -> None:
        """A connection can take a request."""

    def lost(self, connection: Connection, why: str) -> None:
        """A connection ended; the request it carried has no answer."""
        if connection.request >= 0:
            self.record(connection, 0, b"", monotonic())
            self.note(f"request {connection.request}: no answer: {why}")
            connection.request = -1

    def sweep(self) -> None:
        """End connections whose answer does not come."""
        late = monotonic() - self.job.timeout_s
        for connection in list(self.connections):
            if connection.request >= 0 and connection.sent < late:
                connection.transport.abort()
        self.loop.call_later(0.5, self.sweep)

    def recording(self, failure: str = "") -> Recording:
        cpu_s = time.process_time() - self.cpu_before if self.cpu_before else 0.0
        return Recording(
            request=self.request.tobytes(),
            status=self.status.tobytes(),
            due_s=self.due_s.tobytes(),
            latency_s=self.latency_s.tobytes(),
            lag_s=self.lag_s.tobytes(),
            wall_s=max(0.0, self.end - self.start),
            cpu_s=cpu_s,
            num_wrong=self.num_wrong,
            num_bytes=self.num_bytes,
            notes=tuple(self.notes),
            failure=failure,
        )


class Connection(asyncio.Protocol):
    """One connection: at most one request is on it."""

    __slots__ = ("due", "reader", "request", "run", "sent", "transport")

    def __init__(self, run: Run) -> None:
        self.run, self.reader = run, AnswerReader()
        self.request, self.due, self.sent = -1, 0.0, 0.0  # request: -1 while idle
        self.transport: Any = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport
        self.run.connections.add(self)
        self.run.idle(self)

    def send(self, request: int, due: float | None) -> None:
        """due: when it was to be sent; None: now."""
        self.request, self.sent = request, monotonic()
        self.due = self.sent if due is None else due
        self.transport.write(self.run.requests[request])

    def data_received(self, data: bytes) -> None:
        try:
            answer = self.reader.feed(data)
        except BrokenAnswer as error:
            self.run.note(f"request {self.request}: {error}")
            self.transport.abort()
            return
        if answer is None:
            return
        run = self.run
        if self.request < 0:  # an answer that nobody asked for
            self.transport.abort()
            return
        run.record(self, answer.status, answer.body, monotonic())
        self.request = -1
        if answer.keep_alive:
            run.idle(self)
        else:
            self.transport.close()

    def connection_lost(self, exc: Exception | None) -> None:
        self.run.connections.discard(self)
        self.run.lost(self, str(exc) if exc else "the connection was closed")


class Closed(Run):
    """Each connection sends its next request when the last was answered."""

    async def go(self) -> None:
        self._going, self._waiting = False, deque[Connection]()
        await asyncio.gather(*(self.connect() for _ in range(self.job.concurrency)))
        self._going, self.cpu_before, self.start = True, time.process_time(), monotonic()
        self._until = self.start + self.job.seconds
        for connection in list(self._waiting):
            self.idle(connection)
        self.sweep()
        await self.done

    def idle(self, connection: Connection) -> None:
        if not self._going:
            self._waiting.append(connection)
        elif self._more():
            connection.send(self.next_request(), None)
        else:
            self._leave(connection)

    def lost(self, connection: Connection, why: str) -> None:
        super().lost(connection, why)
        if self._going and self._more():
            self.loop.create_task(self._again())
        else:
            self._finish_if_last()

    def _more(self) -> bool:
        job = self.job
        if job.max_requests and self.num_sent >= job.max_requests:
            return False
        return monotonic() < self._until or self.num_sent < job.min_requests

    async def _again(self) -> None:
        await asyncio.sleep(RECONNECT_S)
        if not self._more():
            self._finish_if_last()
            return
        try:
            await self.connect()
        except (OSError, TimeoutError) as error:
            self.note(f"cannot connect: {error}")
            self.loop.create_task(self._again())

    def _leave(self, connection: Connection) -> None:
        self.connections.discard(connection)
        connection.transport.close()
        self._finish_if_last()

    def _finish_if_last(self) -> None:
        if not self.connections and not self.done.done():
            self.done.set_result(None)


class Open(Run):
    """Requests are due at fixed times, whatever the server does."""

    async def go(self) -> None:
        job = self.job
        self._idle, self._backlog = deque[Connection](), deque[tuple[int, float]]()
        self._num_connecting, self._next = 0, 0
        await asyncio.gather(*(self.connect() for _ in range(max(1, job.concurrency))))
        timer = Timer()
        self.cpu_before, self.start = time.process_time(), monotonic() + 0.01
        self._due = (self.start + arrivals(job)).tolist()
        self._timer = timer
        self.loop.add_reader(timer.fd, self._tick)
        timer.set(self._due[0] if self._due else self.start)
        self.sweep()
        if self._due:
            await self.done
        self.loop.remove_reader(timer.fd)
        timer.close()
        for connection in list(self.connections):
            connection.transport.close()

    def _tick(self) -> None:
        self._timer.clear()
        due, place = self._due, self._next
        while place < len(due) and due[place] <= monotonic():
            self._start(self.next_request(), due[place])
            place += 1
        self._next = place
        if place < len(due):
            self._timer.set(due[place] if self.job.rate < GRAIN_FROM else max(due[place], monotonic() + GRAIN_S))

    def _start(self, request: int, due: float) -> None:
        while self._idle:
            connection = self._idle.pop()  # the one used last: few connections stay busy
            if not connection.transport.is_closing():
                connection.send(request, due)
                return
        self._backlog.append((request, due))
        if len(self.connections) + self._num_connecting < self.job.max_connections:
            self._num_connecting += 1
            self.loop.create_task(self._one_more())

    async def _one_more(self) -> None:
        try:
            await self.connect()
        except (OSError, TimeoutError) as error:
            self.note(f"cannot connect: {error}")
            if self._backlog:  # it is the request's failure, told as such
                request, due = self._backlog.popleft()
                failed = Connection(self)
                failed.request, failed.due, failed.sent = request, due, monotonic()
                self.record(failed, 0, b"", monotonic())
                self._finish_if_all()
        finally:
            self._num_connecting -= 1

    def idle(self, connection: Connection) -> None:
        if self._backlog:
            connection.send(*self._backlog.popleft())
        else:
            self._idle.append(connection)
            self._finish_if_all()

    def lost(self, connection: Connection, why: str) -> None:
        super().lost(connection, why)
        if self._backlog and len(self.connections) + self._num_connecting < self.job.max_connections:
            self._num_connecting += 1
            self.loop.create_task(self._one_more())
        self._finish_if_all()

    def _finish_if_all(self) -> None:
        if self.start and len(self.request) >= len(self._due) and not self.done.done():
            self.done.set_result(None)
