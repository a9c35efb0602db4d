"""Tokenise and decode off the event loop: a few threads, each with its own encoder."""

from __future__ import annotations

import asyncio
import contextlib
import os
import queue
import threading
import time
from collections.abc import Callable
from typing import Any, Generic, TypeVar

Encoder = TypeVar("Encoder")
Result = TypeVar("Result")

# The threads are here: the tokenizer's own would spin on the cores that the engine needs.
os.environ["TOKENIZERS_PARALLELISM"] = "false"
GROUP_S = 0.0005  # results of this long are handed over together: each hand-over wakes the event loop


class EncoderPool(Generic[Encoder]):
    """Threads that turn requests into items. The callers bound how much is handed in."""

    def __init__(self, new_encoder: Callable[[], Encoder], num_threads: int) -> None:
        """new_encoder: called once in each thread."""
        self._new_encoder = new_encoder
        self._waiting: queue.SimpleQueue[_Job | None] = queue.SimpleQueue()
        self._threads = [
            threading.Thread(target=self._serve, name=f"encoder-{n}", daemon=True) for n in range(num_threads)
        ]
        for thread in self._threads:
            thread.start()

    async def run(self, work: Callable[[Encoder], Result]) -> Result:
        """Give the work one thread's encoder. Raises what the work raises."""
        future: asyncio.Future[Result] = asyncio.get_running_loop().create_future()
        self._waiting.put(_Job(future, work, tells_result=True))
        return await future

    def start(self, work: Callable[[Encoder], None], future: asyncio.Future[Any]) -> None:
        """The same for work that passes its result on by itself. The future gets what it raises, and nothing else.

        Nothing is done when the future has been cancelled before.
        """
        self._waiting.put(_Job(future, work, tells_result=False))

    def close(self) -> None:
        """Stop the threads, each after what it is doing."""
        for _ in self._threads:
            self._waiting.put(None)

    def _serve(self) -> None:
        encoder = self._new_encoder()
        while (job := self._waiting.get()) is not None:
            finished, until = [], time.monotonic() + GROUP_S
            while True:
                if not job.future.cancelled() and job.run(encoder):
                    finished.append(job)
                if self._waiting.empty() or time.monotonic() > until:
                    break
                try:
                    following = self._waiting.get_nowait()
                except queue.Empty:  # another thread was faster
                    break
                if following is None:
                    self._waiting.put(None)
                    break
                job = following
            if finished:
                with contextlib.suppress(RuntimeError):  # a loop that has closed has nobody waiting
                    job.future.get_loop().call_soon_threadsafe(_give, finished)


class _Job:
    """One call's work, and then what came of it."""

    __slots__ = ("error", "future", "result", "tells_result", "work")

    def __init__(self, future: asyncio.Future[Any], work: Callable[[Any], Any], *, tells_result: bool) -> None:
        self.future, self.work, self.tells_result = future, work, tells_result
        self.result: Any = None
        self.error: Exception | None = None

    def run(self, encoder: object) -> bool:
        """True: the future is to be told."""
        try:
            self.result = self.work(encoder)
        except Exception as error:
            self.error = error
        return self.tells_result or self.error is not None


def _give(jobs: list[_Job]) -> None:
    """Wake the calls that wait for these; in their own loop."""
    for job in jobs:
        if job.future.done():
            continue
        if job.error is not None:
            job.future.set_exception(job.error)
        else:
            job.future.set_result(job.result)
