"""Run a TensorRT plan on an NVIDIA GPU; TensorRT and TensorRT for RTX are two flavours of this one module."""

from __future__ import annotations

import ctypes
import importlib.util
import logging
import os
import queue
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import blake3
import numpy as np
from numpy.typing import NDArray

from serving.backends.base import Inputs, LoadOptions
from serving.backends.checks import InputSpec, check_inputs, check_output, engine_problems
from serving.backends.cuda import Cuda, Output, Staging, load_cuda
from serving.errors import BackendError

DIGEST_BYTES = 32  # of BLAKE3, before the kernels in a cache file
log = logging.getLogger(__name__)


class TensorRt:
    """Execution contexts of one engine, each lent to one thread at a time."""

    lends_all = False

    def __init__(
        self, name: str, trt: Any, cuda: Cuda, engine: Any, options: LoadOptions, cache_file: Path | None
    ) -> None:
        self.name = name
        self._engine, self._cache_file, self._device_index = engine, cache_file, options.device_index
        self._cuda = cuda
        self._specs, output = _tensors(trt, engine)
        self.input_names = tuple(spec.name for spec in self._specs)
        self._runtime_cache: Any = None
        config = None if cache_file is None else self._runtime_config(trt, cache_file)
        self._contexts: queue.SimpleQueue[Staging] = queue.SimpleQueue()
        for _ in range(max(1, options.num_streams)):
            context = engine.create_execution_context() if config is None else engine.create_execution_context(config)
            if context is None:
                raise BackendError(f"{name} could not create an execution context: too little GPU memory?")
            self._contexts.put(Staging(name, cuda, context, self._specs, output))
        self._kept_cache = False

    def infer(self, inputs: Inputs, *, alone: bool = False) -> NDArray[np.float32]:
        num_items = check_inputs(inputs, self._specs)
        staging = self._contexts.get()
        try:
            self._cuda.use(self._device_index)
            output = staging.run(inputs, num_items)
            if not self._kept_cache:
                self._keep_cache()
        finally:
            self._contexts.put(staging)
        return check_output(output, num_items)

    def realized_precision(self) -> Mapping[str, float]:
        return {}  # plans are built without per-layer detail

    def close(self) -> None:
        self._keep_cache()
        while not self._contexts.empty():
            self._contexts.get_nowait().close()
        self._engine = self._runtime_cache = None

    def _runtime_config(self, trt: Any, cache_file: Path) -> Any:
        """TensorRT for RTX compiles kernels as shapes come; those of the cache file it need not compile again.

        The strategy lets it replay CUDA graphs. Version 1.7.1 calls its graph caches "single element": a context whose
        shapes alternate captures again. No figure of ours says what either is worth.
        """
        config = self._engine.create_runtime_config()
        config.cuda_graph_strategy = trt.CudaGraphStrategy.WHOLE_GRAPH_CAPTURE
        self._runtime_cache = config.create_runtime_cache()
        kernels = _whole(cache_file)
        if kernels is not None and not self._runtime_cache.deserialize(kernels):
            log.warning("%s: made for another machine or version; compiling again", cache_file)
        config.set_runtime_cache(self._runtime_cache)
        return config

    def _keep_cache(self) -> None:
        """Write what is compiled by now: after the first batch, and when the engine is closed."""
        self._kept_cache = True
        if self._cache_file is None or self._runtime_cache is None:
            return
        partial = self._cache_file.with_suffix(f".{os.getpid()}")
        try:
            kernels = bytes(self._runtime_cache.serialize())
            partial.write_bytes(blake3.blake3(kernels).digest() + kernels)
            partial.replace(self._cache_file)
        except OSError as error:  # a read-only cache is legal: the next start compiles again
            log.info("compiled kernels are not kept: %s", error)


def _whole(cache_file: Path) -> bytes | None:
    """The kept kernels, if they are as they were written: TensorRT must not parse bytes that a disk changed."""
    if not cache_file.is_file():
        return None
    content = cache_file.read_bytes()
    digest, kernels = content[:DIGEST_BYTES], content[DIGEST_BYTES:]
    if blake3.blake3(kernels).digest() == digest:
        return kernels
    log.warning("%s: does not match its digest; compiling again", cache_file)
    return None


def load_tensorrt(engine: bytes, options: LoadOptions) -> TensorRt:
    """Plan bytes -> contexts on one GPU. Raises BackendError."""
    try:
        import tensorrt
    except ImportError as error:
        raise BackendError(f"TensorRT is not installed here: {error}; use the cuda runtime image") from error
    return _load("tensorrt", tensorrt, engine, options, None)


def load_tensorrt_rtx(engine: bytes, options: LoadOptions) -> TensorRt:
    """Plan bytes -> contexts on one GPU, their compiled kernels kept in options.cache_dir. Raises BackendError."""
    trt = import_tensorrt_rtx()
    cache_file = None
    if options.cache_dir is not None:
        cache_file = options.cache_dir / f"{blake3.blake3(engine).hexdigest()}.{trt.__version__}.rtxcache"
    return _load("tensorrt-rtx", trt, engine, options, cache_file)


def import_tensorrt_rtx() -> Any:
    """Import the bindings after the libraries that they need, which come in another package. Raises BackendError."""
    try:
        carrier = importlib.util.find_spec("onnxruntime_ep_nv_tensorrt_rtx")
        if carrier is None or carrier.origin is None:
            raise ImportError("package onnxruntime-ep-nv-tensorrt-rtx-cu13, which carries its libraries, is missing")
        folder = Path(carrier.origin).parent
        for pattern in ("libtensorrt_rtx.so.*", "libtensorrt_onnxparser_rtx.so.*"):
            (library,) = sorted(folder.glob(pattern))[:1] or [folder / pattern]
            ctypes.CDLL(str(library), mode=ctypes.RTLD_GLOBAL)  # the bindings find its symbols by name
        import tensorrt_rtx_bindings
    except (ImportError, OSError) as error:
        raise BackendError(f"TensorRT for RTX is not installed here: {error}; use the rtx runtime image") from error
    return tensorrt_rtx_bindings


def _load(name: str, trt: Any, engine: bytes, options: LoadOptions, cache_file: Path | None) -> TensorRt:
    cuda = load_cuda()
    cuda.use(options.device_index)  # makes the context that deserialising needs
    runtime = trt.Runtime(trt.Logger(trt.Logger.WARNING))
    loaded = runtime.deserialize_cuda_engine(engine)
    if loaded is None:
        raise BackendError(
            f"{name} {trt.__version__} cannot load the engine: it was built for another version or GPU, or is damaged"
        )
    return TensorRt(name, trt, cuda, loaded, options, cache_file)


def _tensors(trt: Any, engine: Any) -> tuple[tuple[InputSpec, ...], Output]:
    """The inputs, and the output. Raises BackendError unless this server can feed them and reads one (B, D)."""
    names = [engine.get_tensor_name(i) for i in range(engine.num_io_tensors)]
    inputs = [n for n in names if engine.get_tensor_mode(n) == trt.TensorIOMode.INPUT]
    outputs = [n for n in names if n not in inputs]
    dtypes = {trt.DataType.INT64: "int64", trt.DataType.FLOAT: "float32"}
    specs = []
    for name in inputs:
        low, _, high = engine.get_tensor_profile_shape(name, 0)
        kind = engine.get_tensor_dtype(name)
        axes = tuple(zip(tuple(low), tuple(high), strict=True))
        specs.append(InputSpec(name=name, dtype=dtypes.get(kind, str(kind)), axes=axes))
    problems = engine_problems(specs)
    if len(outputs) != 1 or len(engine.get_tensor_shape(outputs[0])) != 2:
        problems.append(f"outputs are {outputs}, expected one of shape (B, D)")
    elif engine.get_tensor_dtype(outputs[0]) not in (trt.DataType.FLOAT, trt.DataType.HALF):
        problems.append(f"output {outputs[0]} is neither float32 nor float16")
    if problems:
        raise BackendError("; ".join(problems))
    dtype = np.dtype(trt.nptype(engine.get_tensor_dtype(outputs[0])))
    return tuple(specs), Output(outputs[0], int(engine.get_tensor_shape(outputs[0])[1]), dtype)
