"""Tokenise and decode off the event loop: a few threads, each with its own encoder."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

from serving.tasks import clip, embed, rerank
from serving.tasks.spec import Spec

Result = TypeVar("Result")


class EncoderPool:
    """Threads that turn requests into items. The callers bound how much is handed in."""

    def __init__(self, tokenizer: bytes, spec: Spec, num_threads: int) -> None:
        self._local = threading.local()
        self._tokenizer, self._spec = tokenizer, spec
        self._pool = ThreadPoolExecutor(num_threads, thread_name_prefix="encoder", initializer=self._make)

    async def run(self, work: Callable[[Any], Result]) -> Result:
        """Give the work one thread's encoder, of the task's own class. Raises what the work raises."""
        return await asyncio.get_running_loop().run_in_executor(self._pool, self._run, work)

    def close(self) -> None:
        self._pool.shutdown(wait=False, cancel_futures=True)

    def _make(self) -> None:
        self._local.encoder = encoder_of(self._tokenizer, self._spec)

    def _run(self, work: Callable[[Any], Result]) -> Result:
        return work(self._local.encoder)


def encoder_of(tokenizer: bytes, spec: Spec) -> embed.Encoder | rerank.Encoder | clip.Encoder:
    if isinstance(spec, rerank.RerankSpec):
        return rerank.Encoder(tokenizer, spec)
    if isinstance(spec, clip.ClipSpec):
        return clip.Encoder(tokenizer, spec)
    return embed.Encoder(tokenizer, spec)
