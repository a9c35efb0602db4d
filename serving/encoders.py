"""Tokenise off the event loop: a few threads, each with its own encoder."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from numpy.typing import NDArray

from serving.tasks.embed import EmbedSpec, Encoder, InputType, Truncate


class EncoderPool:
    """Threads that tokenise. The callers bound how much is handed in."""

    def __init__(self, tokenizer: bytes, spec: EmbedSpec, num_threads: int) -> None:
        self._local = threading.local()
        self._tokenizer, self._spec = tokenizer, spec
        self._pool = ThreadPoolExecutor(num_threads, thread_name_prefix="encoder", initializer=self._make)

    async def encode(
        self, texts: Sequence[str], truncate: Truncate, input_type: InputType | None
    ) -> list[NDArray[np.int64]]:
        """N texts -> N arrays (T,). Raises what Encoder.encode raises."""
        return await asyncio.get_running_loop().run_in_executor(self._pool, self._encode, texts, truncate, input_type)

    def close(self) -> None:
        self._pool.shutdown(wait=False, cancel_futures=True)

    def _make(self) -> None:
        self._local.encoder = Encoder(self._tokenizer, self._spec)

    def _encode(
        self, texts: Sequence[str], truncate: Truncate, input_type: InputType | None
    ) -> list[NDArray[np.int64]]:
        encoder: Encoder = self._local.encoder
        return encoder.encode(texts, truncate=truncate, input_type=input_type)
