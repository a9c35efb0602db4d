"""Compile with TensorRT for RTX, ahead of time: for a compute capability, on any machine, without a GPU."""

from __future__ import annotations

import re
from typing import Any

from pipelines.compile.base import CompileOrder, Engine
from pipelines.compile.tensorrt_builder import build, skus_of
from pipelines.errors import CompileError
from serving.backends.tensorrt import import_tensorrt_rtx
from serving.errors import BackendError


def compile_engine(order: CompileOrder) -> Engine:
    """For the compute capability of the order. Raises CompileError."""
    try:
        trt = import_tensorrt_rtx()  # as the server imports it
    except BackendError as error:
        raise CompileError(f"{error}, or install the extra 'tensorrt-rtx'") from error
    cc = order.compute_capability or ""
    target = getattr(trt.ComputeCapability, f"SM{cc.replace('.', '')}", None) if cc else None
    if target is None:
        targets = sorted(n for n in vars(trt.ComputeCapability) if re.fullmatch(r"SM\d+", n))
        raise CompileError(
            f"TensorRT for RTX {trt.__version__} has no target for compute capability {cc or '(none given)'}"
            f"{skus_of(cc)}; it has {', '.join(targets)}; use the compiler 'tensorrt' on a worker that has this GPU"
        )

    def configure(config: Any) -> None:
        config.num_compute_capabilities = 1
        config.set_compute_capability(target, 0)

    return build(trt, order, configure)
