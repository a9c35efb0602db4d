"""The generic engine: the typed ONNX itself, for a runtime that compiles when it loads."""

from __future__ import annotations

from pipelines.compile.base import CompileOrder, Engine
from pipelines.errors import CompileError
from pipelines.onnx_graph import external_data


def compile_engine(order: CompileOrder) -> Engine:
    """The typed ONNX as it is. What ONNX Runtime would optimize ahead of time depends on its version and CPU.

    An engine is one file, whose digest is checked before it is opened. Raises CompileError for external data.
    """
    if external_data.has_external_data(order.source):
        size = sum(path.stat().st_size for path in order.source.parent.iterdir())
        raise CompileError(
            f"a generic engine is one ONNX file, which ends at 2 GiB, and this model has {size / 2**30:.1f} GiB in "
            f"{order.precision}; leave this SKU out for it, and for CPUs choose one whose compiler is openvino, "
            "in bf16 (half the size) or fp32"
        )
    return Engine(file_name="engine.onnx", data=order.source.read_bytes())
