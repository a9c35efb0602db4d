"""The CUDA runtime, and the way of a batch to a GPU and of its rows back. Knows no engine's format."""

from __future__ import annotations

import ctypes
import math
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from serving.backends.base import Inputs
from serving.backends.checks import InputSpec
from serving.errors import BackendError


class Cuda:
    """The CUDA runtime, its status codes turned into BackendError."""

    def __init__(self, api: Any) -> None:
        """api: cuda.bindings.runtime, or what answers like it."""
        self.api = api

    def use(self, device_index: int) -> None:
        """Make a device the calling thread's: it is chosen for each thread."""
        self.check(self.api.cudaSetDevice(device_index))

    def check(self, result: tuple[Any, ...]) -> Any:
        """The value of a call, None where it gives none. Raises BackendError for a status that is not success."""
        status, *values = result
        if status != self.api.cudaError_t.cudaSuccess:
            _, text = self.api.cudaGetErrorString(status)
            raise BackendError(f"CUDA: {text.decode()} ({status.name}); is there a GPU here, and its driver?")
        return values[0] if values else None


def load_cuda() -> Cuda:
    """Import the bindings. Raises BackendError where they are not installed."""
    try:
        from cuda.bindings import runtime
    except ImportError as error:
        raise BackendError(f"cuda-bindings is not installed here: {error}") from error
    return Cuda(runtime)


class Context(Protocol):
    """What runs on the device: TensorRT's IExecutionContext, as far as it is called here."""

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        """False: it does not take this shape."""

    def set_tensor_address(self, name: str, address: int) -> bool:
        """Where on the device a tensor lies."""

    def execute_async_v3(self, stream: int) -> bool:
        """Queue one run on a stream. False: it could not."""


class Output(NamedTuple):
    """The tensor that is read, (B, dimension)."""

    name: str
    dimension: int
    dtype: np.dtype[Any]


class Staging:
    """One execution context with its stream, and a buffer on the device and one in pinned memory for each tensor.

    Buffers are sized for the engine's largest shape, and their addresses never change.
    """

    def __init__(self, name: str, cuda: Cuda, context: Context, specs: tuple[InputSpec, ...], output: Output) -> None:
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
        del self._context
        self._host = {}
        for address in self._device.values():
            self._cuda.api.cudaFree(address)
        for address in self._pinned.values():
            self._cuda.api.cudaFreeHost(address)
        self._cuda.api.cudaStreamDestroy(self._stream)
