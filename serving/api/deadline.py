"""The end of a request that takes too long, or whose client has left."""

from __future__ import annotations

import asyncio
from typing import Any

from serving.api import errors
from serving.api.body import ClientGone, Receive
from serving.api.state import Limits

WATCH_AFTER_S = 0.02  # an answer that comes sooner is not worth a task that looks whether the client is still there


class Deadline:
    """Ends a request whose body comes too slowly, whose answer takes too long, or whose client has left.

    A client's leaving takes its texts out of the queue.
    """

    def __init__(self, receive: Receive, limits: Limits) -> None:
        self._receive, self._limits = receive, limits
        self._loop = asyncio.get_running_loop()
        self._timeout = asyncio.timeout(limits.body_timeout_s)
        self._watching: asyncio.TimerHandle | None = None
        self._leaving: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Deadline:
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
