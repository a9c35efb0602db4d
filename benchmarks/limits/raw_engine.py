"""The engine alone in a process of its own: loaded as the server loads it, called without a server.

Run as a module it is that process: python -m benchmarks.limits.raw_engine dist/MODEL PROFILE
"""

from __future__ import annotations

import sys
import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from benchmarks.load.pipe import Child, answer_all
from pipelines.errors import EngineryError
from serving import backends
from serving.backends import openvino
from serving.backends.base import Backend, LoadOptions
from serving.cache.fetch import fetch
from serving.cache.places import Places
from serving.choice import hardware
from serving.contract import manifest
from serving.tasks import embed, rerank
from serving.tasks.table import load_spec

ENGINES = ("engine.blob", "engine.onnx")
ALL_KERNELS = 5000  # a limit prepares none twice: it runs the same batches over and over


class Timed(msgspec.Struct, frozen=True, kw_only=True, tag="time"):
    """Run these batches over and over; answered with the seconds of each, in turn."""

    batches: tuple[tuple[int, ...], ...]  # the tokens of each item
    seconds: float  # at least; a pass over all batches is always finished
    multiple: int = 1  # widths are rounded up to it, as the server does
    num_streams: int = 1  # so many threads run the batches at once, each on its share of the cores


class Read(msgspec.Struct, frozen=True, kw_only=True, tag="read"):
    """Embed each text, or score each passage for the query, one at a time; answered with the numbers."""

    texts: tuple[str, ...]
    query: str | None = None


class Times(msgspec.Struct, frozen=True, kw_only=True):
    """Seconds of each batch of each pass, of all streams."""

    seconds: bytes  # float64 (passes, batches)


class Numbers(msgspec.Struct, frozen=True, kw_only=True):
    """Vectors or scores."""

    numbers: bytes  # float32 (N, D)
    dimension: int


class RawEngine(Child):
    """The parent's side. Use as a context."""

    def __init__(self, model_dir: Path, profile: str) -> None:
        command = [sys.executable, "-m", "benchmarks.limits.raw_engine", str(model_dir), profile]
        super().__init__("the raw engine", command)

    def times(self, request: Timed) -> NDArray[np.float64]:
        """(passes, batches) seconds."""
        answer = msgspec.msgpack.decode(self.ask(msgspec.msgpack.encode(request)), type=Times)
        return np.frombuffer(answer.seconds, dtype=np.float64).reshape(-1, len(request.batches))

    def read(self, request: Read) -> NDArray[np.float32]:
        """(N, D)."""
        answer = msgspec.msgpack.decode(self.ask(msgspec.msgpack.encode(request)), type=Numbers)
        return np.frombuffer(answer.numbers, dtype=np.float32).reshape(-1, answer.dimension)


class _Engine:
    """The child's side."""

    def __init__(self, model_dir: Path, name: str) -> None:
        root = model_dir / "rootfs" / "opt" / "nim"
        offered = manifest.read(root / "etc" / "default" / "model_manifest.yaml")
        profile = next(profile for profile in offered.profiles if profile.name == name)
        files = fetch(profile, Places(root=root))
        self._spec = load_spec(files["task.json"])
        self._tower = self._spec.towers[0]
        self._tokenizer = files["tokenizer.json"]
        self._num_tokens = Tokenizer.from_buffer(self._tokenizer).get_vocab_size()
        self._options = LoadOptions(
            precision=profile.precision,
            num_threads=hardware.detect(cpu_only=True).num_cpus,
            cpu_isa=profile.tags.get("cpu_isa") or None,
        )
        self._backend, self._data = profile.backend, next(files[name] for name in ENGINES if name in files)
        self._loaded: dict[int, Backend] = {}  # by streams

    def time(self, request: Timed) -> Times:
        rng = np.random.default_rng(0)
        inputs = [
            self._tower.collate([self._item(rng, length) for length in batch], multiple=request.multiple)
            for batch in request.batches
        ]
        infer = self._engine(request.num_streams).infer
        by_stream: list[list[float]] = [[] for _ in range(request.num_streams)]
        ready = threading.Barrier(request.num_streams)

        def work(seconds: list[float]) -> None:
            for arrays in inputs:  # kernels of new shapes are prepared
                infer(arrays)
            ready.wait()
            start = time.perf_counter()
            while not seconds or time.perf_counter() - start < request.seconds:
                for arrays in inputs:
                    called = time.perf_counter()
                    infer(arrays)
                    seconds.append(time.perf_counter() - called)

        threads = [threading.Thread(target=work, args=(seconds,)) for seconds in by_stream]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return Times(seconds=np.concatenate(by_stream).tobytes())

    def read(self, request: Read) -> Numbers:
        if isinstance(self._spec, rerank.RerankSpec):
            items = rerank.Encoder(self._tokenizer, self._spec).encode(request.query or "", request.texts)
        elif isinstance(self._spec, embed.EmbedSpec):
            items = embed.Encoder(self._tokenizer, self._spec).encode(request.texts)
        else:
            raise EngineryError(f"a model of {self._spec.task} is not measured")
        infer = self._engine(1).infer
        rows = [infer(self._tower.collate([item])) for item in items]
        numbers = np.concatenate(rows).astype(np.float32)
        return Numbers(numbers=numbers.tobytes(), dimension=numbers.shape[1])

    def _engine(self, num_streams: int) -> Backend:
        if num_streams not in self._loaded:
            options = replace(self._options, num_streams=num_streams)
            self._loaded[num_streams] = backends.load(self._backend, self._data, options)
        return self._loaded[num_streams]

    def _item(self, rng: np.random.Generator, length: int) -> NDArray[Any]:
        ids = rng.integers(self._num_tokens // 2, self._num_tokens, length)
        return np.stack([ids, np.zeros_like(ids)]) if isinstance(self._spec, rerank.RerankSpec) else ids


def main(model_dir: Path, profile: str) -> None:
    """Answer until the parent closes."""
    openvino.MAX_INT8_KERNELS = ALL_KERNELS
    engine = _Engine(model_dir, profile)
    decoder = msgspec.msgpack.Decoder(Timed | Read)

    def answer(message: bytes) -> bytes:
        request = decoder.decode(message)
        return msgspec.msgpack.encode(engine.time(request) if isinstance(request, Timed) else engine.read(request))

    answer_all(answer)


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
