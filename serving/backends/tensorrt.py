"""Run a TensorRT plan on an NVIDIA GPU; TensorRT and TensorRT for RTX are two flavours of this one module."""

from __future__ import annotations

import ctypes
import importlib.util
import logging
import math
import os
import queue
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import blake3
import numpy as np
from numpy.typing import NDArray

from serving.backends.base import Inputs, LoadOptions
from serving.backends.checks import InputSpec, check_inputs, check_output, engine_problems
from serving.errors import BackendError

DIGEST_BYTES = 32  # of BLAKE3, before the kernels in a cache file
log = logging.getLogger(__name__)


class TensorRt:
    """Execution contexts of one engine, each lent to one thread at a time: one copies while another computes."""

    lends_all = False

    def __init__(self, name: str, trt: Any, engine: Any, options: LoadOptions, cache_file: Path | None) -> None:
        self.name = name
        self._engine, self._cache_file, self._device_index = engine, cache_file, options.device_index
        self._cuda = _Cuda()
        self._specs, output = _tensors(trt, engine)
        self.input_names = tuple(spec.name for spec in self._specs)
        self._runtime_cache: Any = None
        config = None if cache_file is None else self._runtime_config(trt, cache_file)
        self._lanes: queue.SimpleQueue[_Lane] = queue.SimpleQueue()
        for _ in range(max(1, options.num_streams)):
            context = engine.create_execution_context() if config is None else engine.create_execution_context(config)
            if context is None:
                raise BackendError(f"{name} could not create an execution context: too little GPU memory?")
            self._lanes.put(_Lane(name, self._cuda, context, self._specs, output))
        self._kept_cache = False

    def infer(self, inputs: Inputs, *, alone: bool = False) -> NDArray[np.float32]:
        num_items = check_inputs(inputs, self._specs)
        lane = self._lanes.get()
        try:
            self._cuda.check(self._cuda.api.cudaSetDevice(self._device_index))  # it belongs to the calling thread
            output = lane.run(inputs, num_items)
            if not self._kept_cache:
                self._keep_cache()
        finally:
            self._lanes.put(lane)
        return check_output(output, num_items)

    def realized_precision(self) -> Mapping[str, float]:
        return {}  # plans are built without per-layer detail

    def close(self) -> None:
        self._keep_cache()
        while not self._lanes.empty():
            self._lanes.get_nowait().close()
        self._engine = self._runtime_cache = None

    def _runtime_config(self, trt: Any, cache_file: Path) -> Any:
        """TensorRT for RTX compiles its kernels at first use; with a cache file the next start need not.

        It also captures a CUDA graph of each shape that comes again, once that shape's own kernels are compiled.
        """
        config = self._engine.create_runtime_config()
        config.cuda_graph_strategy = trt.CudaGraphStrategy.WHOLE_GRAPH_CAPTURE
        self._runtime_cache = config.create_runtime_cache()
        kept = _whole(cache_file)
        if kept is not None and not self._runtime_cache.deserialize(kept):
            log.warning("%s: made for another machine or version; compiling again", cache_file)
        config.set_runtime_cache(self._runtime_cache)
        return config

    def _keep_cache(self) -> None:
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


class _Lane:
    """One context with its stream, and a buffer on the device and one in pinned memory for each tensor.

    Buffers are sized for the engine's largest shape. Their addresses never change, as a CUDA graph demands; copies from
    and to pinned memory need no detour through the driver's own.
    """

    def __init__(self, name: str, cuda: _Cuda, context: Any, specs: tuple[InputSpec, ...], output: _Output) -> None:
        self._name, self._cuda, self._context, self._output = name, cuda, context, output
        api, check = cuda.api, cuda.check
        self._stream = check(api.cudaStreamCreate())
        sizes = {
            spec.name: math.prod(high or 1 for _, high in spec.axes) * np.dtype(spec.dtype).itemsize for spec in specs
        }
        sizes[output.name] = (specs[0].axes[0][1] or 1) * output.dimension * output.dtype.itemsize
        self._device = {tensor: int(check(api.cudaMalloc(size))) for tensor, size in sizes.items()}
        self._pinned = {tensor: int(check(api.cudaMallocHost(size))) for tensor, size in sizes.items()}
        self._host = {
            tensor: np.ctypeslib.as_array((ctypes.c_uint8 * size).from_address(self._pinned[tensor]))
            for tensor, size in sizes.items()
        }
        for tensor, address in self._device.items():
            context.set_tensor_address(tensor, address)

    def run(self, inputs: Inputs, num_items: int) -> NDArray[np.generic]:
        """One batch -> (B, D) in the engine's own type. The calling thread has chosen the device."""
        api, check = self._cuda.api, self._cuda.check
        for name, array in inputs.items():
            if not self._context.set_input_shape(name, array.shape):
                raise BackendError(f"{self._name} refused the shape {array.shape} for {name}")
            host = self._host[name][: array.nbytes]
            np.copyto(host.view(array.dtype).reshape(array.shape), array)
            copy = (self._device[name], self._pinned[name], array.nbytes)
            check(api.cudaMemcpyAsync(*copy, api.cudaMemcpyKind.cudaMemcpyHostToDevice, self._stream))
        if not self._context.execute_async_v3(int(self._stream)):
            raise BackendError(f"{self._name} could not run a batch of {num_items}; its log has the cause")
        output = self._output
        size = num_items * output.dimension * output.dtype.itemsize
        copy = (self._pinned[output.name], self._device[output.name], size)
        check(api.cudaMemcpyAsync(*copy, api.cudaMemcpyKind.cudaMemcpyDeviceToHost, self._stream))
        check(api.cudaStreamSynchronize(self._stream))
        rows: NDArray[np.generic] = self._host[output.name][:size].view(output.dtype)
        return rows.reshape(num_items, output.dimension).copy()

    def close(self) -> None:
        self._context = None
        self._host = {}
        for address in self._device.values():
            self._cuda.api.cudaFree(address)
        for address in self._pinned.values():
            self._cuda.api.cudaFreeHost(address)
        self._cuda.api.cudaStreamDestroy(self._stream)


class _Output(NamedTuple):
    """The tensor that is read, (B, dimension)."""

    name: str
    dimension: int
    dtype: np.dtype[Any]


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
    cuda = _Cuda()
    cuda.check(cuda.api.cudaSetDevice(options.device_index))  # makes the context that deserialising needs
    runtime = trt.Runtime(trt.Logger(trt.Logger.WARNING))
    loaded = runtime.deserialize_cuda_engine(engine)
    if loaded is None:
        raise BackendError(
            f"{name} {trt.__version__} cannot load the engine: it was built for another version or GPU, or is damaged"
        )
    return TensorRt(name, trt, loaded, options, cache_file)


def _tensors(trt: Any, engine: Any) -> tuple[tuple[InputSpec, ...], _Output]:
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
    return tuple(specs), _Output(outputs[0], int(engine.get_tensor_shape(outputs[0])[1]), dtype)


class _Cuda:
    """The CUDA runtime, its status codes turned into BackendError."""

    def __init__(self) -> None:
        try:
            from cuda.bindings import runtime
        except ImportError as error:
            raise BackendError(f"cuda-bindings is not installed here: {error}") from error
        self.api: Any = runtime

    def check(self, result: tuple[Any, ...]) -> Any:
        status, *values = result
        if status != self.api.cudaError_t.cudaSuccess:
            _, text = self.api.cudaGetErrorString(status)
            raise BackendError(f"CUDA: {text.decode()} ({status.name}); is there a GPU here, and its driver?")
        return values[0] if values else None
