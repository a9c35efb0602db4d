"""Compile with TensorRT, which tunes on the very GPU that the engine is for."""

from __future__ import annotations

import importlib

from pipelines.compile.base import CompileOrder, Engine
from pipelines.compile.tensorrt_builder import build, skus_of
from pipelines.errors import CompileError


def compile_engine(order: CompileOrder) -> Engine:
    """For the GPU of this machine, which must have the order's compute capability. Raises CompileError."""
    try:
        trt = importlib.import_module("tensorrt")
    except ImportError as error:
        raise CompileError(
            f"TensorRT is not installed here ({error}); on a worker with the GPU, install the extra 'tensorrt'"
        ) from error
    have = _current_compute_capability()
    if have != order.compute_capability:
        raise CompileError(
            f"this needs a worker with compute capability {order.compute_capability}"
            f"{skus_of(order.compute_capability)}; the GPU here has {have}"
        )
    return build(trt, order, lambda config: None)


def _current_compute_capability() -> str:
    """Of the first GPU here, "9.0". Raises CompileError where there is none."""
    try:
        import pynvml

        pynvml.nvmlInit()
        major, minor = pynvml.nvmlDeviceGetCudaComputeCapability(pynvml.nvmlDeviceGetHandleByIndex(0))
    except Exception as error:  # no module, no driver, no GPU: all mean the same here
        raise CompileError(f"TensorRT builds on the GPU it builds for, and there is none here ({error})") from error
    return f"{major}.{minor}"
