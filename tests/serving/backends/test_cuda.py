"""Staging: a batch goes to the device and its rows come back, whatever computes there.

The CUDA runtime is the real one where there is a GPU; a stand-in with the same calls, whose device is this memory,
elsewhere. What computes is a copy on the device: rows are the inputs themselves.
"""

from __future__ import annotations

import ctypes
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from serving.backends import cuda as cuda_module
from serving.backends.checks import InputSpec
from serving.backends.cuda import Cuda, Output, Staging, load_cuda
from serving.errors import BackendError

SPECS = (InputSpec(name="pixel_values", dtype="float32", axes=((1, 4), (1, 3))),)
OUTPUT = Output("rows", 3, np.dtype(np.float32))


class Runtime:
    """The calls of cuda.bindings.runtime that are made, on this machine's own memory."""

    cudaError_t = SimpleNamespace(cudaSuccess="success")
    cudaMemcpyKind = SimpleNamespace(cudaMemcpyHostToDevice=1, cudaMemcpyDeviceToHost=2, cudaMemcpyDeviceToDevice=3)

    def __init__(self) -> None:
        self.held: dict[int, Any] = {}
        self.free_bytes, self._last_stream = 1 << 20, 0

    def cudaMalloc(self, size: int) -> tuple[Any, ...]:
        if size > self.free_bytes:
            return (SimpleNamespace(name="cudaErrorMemoryAllocation"), None)
        self.free_bytes -= size
        buffer = (ctypes.c_uint8 * size)()
        self.held[ctypes.addressof(buffer)] = buffer
        return ("success", ctypes.addressof(buffer))

    cudaMallocHost = cudaMalloc

    def cudaFree(self, address: int) -> tuple[str]:
        self.free_bytes += len(self.held.pop(address))
        return ("success",)

    cudaFreeHost = cudaFree

    def cudaMemcpyAsync(self, to: int, source: int, size: int, kind: int, stream: int) -> tuple[str]:
        ctypes.memmove(to, source, size)
        return ("success",)

    def cudaStreamCreate(self) -> tuple[str, int]:
        self._last_stream += 1
        self.held[self._last_stream] = b""
        return ("success", self._last_stream)

    cudaStreamDestroy = cudaFree

    def cudaStreamSynchronize(self, stream: int) -> tuple[str]:
        return ("success",)

    def cudaSetDevice(self, index: int) -> tuple[str]:
        return ("success",)

    def cudaGetErrorString(self, status: Any) -> tuple[str, bytes]:
        return ("success", b"out of memory")


class Copy:
    """What computes: the rows are the input."""

    def __init__(self, cuda: Cuda) -> None:
        self._cuda = cuda
        self.addresses: dict[str, list[int]] = {}
        self.takes, self.runs, self._num_bytes = True, True, 0

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        self._num_bytes = int(np.prod(shape)) * 4
        return self.takes

    def set_tensor_address(self, name: str, address: int) -> bool:
        self.addresses.setdefault(name, []).append(address)
        return True

    def execute_async_v3(self, stream: int) -> bool:
        api, (source,), (rows,) = self._cuda.api, self.addresses["pixel_values"], self.addresses["rows"]
        kind = api.cudaMemcpyKind.cudaMemcpyDeviceToDevice
        self._cuda.check(api.cudaMemcpyAsync(rows, source, self._num_bytes, kind, stream))
        return self.runs


@pytest.fixture(params=["stand-in", pytest.param("real", marks=pytest.mark.gpu)])
def cuda(request: pytest.FixtureRequest) -> Cuda:
    if request.param == "stand-in":
        return Cuda(Runtime())
    try:
        real = load_cuda()
        real.use(0)
    except BackendError as error:
        pytest.skip(f"needs an NVIDIA GPU and its driver: {error}")
    return real


def batch(num_items: int) -> NDArray[np.float32]:
    return np.random.default_rng(num_items).normal(size=(num_items, 3)).astype(np.float32)


def test_every_batch_comes_back_as_its_own_rows_whatever_ran_before_it(cuda: Cuda) -> None:
    context = Copy(cuda)
    staging = Staging("copy", cuda, context, SPECS, OUTPUT)
    answers = [(size, staging.run({"pixel_values": batch(size)}, size)) for size in (4, 1, 3, 4, 2)]
    for size, rows in answers:  # looked at when all have run: no later batch may write into an earlier answer
        assert rows.dtype == np.float32
        assert np.array_equal(rows, batch(size))
    assert all(len(addresses) == 1 for addresses in context.addresses.values())
    staging.close()


def test_what_the_context_refuses_or_cannot_run_is_an_error_of_the_backend(cuda: Cuda) -> None:
    context = Copy(cuda)
    staging = Staging("copy", cuda, context, SPECS, OUTPUT)
    context.takes = False
    with pytest.raises(BackendError, match=r"copy refused the shape \(2, 3\) for pixel_values"):
        staging.run({"pixel_values": batch(2)}, 2)
    context.takes, context.runs = True, False
    with pytest.raises(BackendError, match="copy could not run a batch of 2"):
        staging.run({"pixel_values": batch(2)}, 2)
    context.runs = True
    assert np.array_equal(staging.run({"pixel_values": batch(2)}, 2), batch(2))
    staging.close()


def test_two_contexts_side_by_side_do_not_share_a_buffer(cuda: Cuda) -> None:
    contexts = [Copy(cuda), Copy(cuda)]
    stagings = [Staging("copy", cuda, context, SPECS, OUTPUT) for context in contexts]
    assert contexts[0].addresses != contexts[1].addresses
    for size, staging in enumerate(stagings, start=1):
        assert np.array_equal(staging.run({"pixel_values": batch(size)}, size), batch(size))
        staging.close()


def test_closing_gives_back_all_that_was_taken() -> None:
    runtime = Runtime()
    cuda, free = Cuda(runtime), runtime.free_bytes
    Staging("copy", cuda, Copy(cuda), SPECS, OUTPUT).close()
    assert runtime.held == {}
    assert runtime.free_bytes == free


def test_a_status_that_is_no_success_is_an_error_with_its_name_and_a_question_to_the_person() -> None:
    runtime = Runtime()
    runtime.free_bytes = 10
    cuda = Cuda(runtime)
    with pytest.raises(BackendError, match=r"CUDA: out of memory \(cudaErrorMemoryAllocation\); is there a GPU here"):
        Staging("copy", cuda, Copy(cuda), SPECS, OUTPUT)


def test_the_bindings_and_the_stand_in_have_all_that_is_called() -> None:
    runtime = pytest.importorskip("cuda.bindings.runtime")
    called = set(re.findall(r"\bapi\.(\w+)", Path(cuda_module.__file__).read_text("utf-8")))
    assert {"cudaMallocHost", "cudaFreeHost", "cudaMemcpyAsync"} <= called
    assert {name for name in called if not (hasattr(runtime, name) and hasattr(Runtime, name))} == set()
