"""The generic engine: the typed ONNX itself, for a runtime that compiles when it loads."""

from __future__ import annotations

from pipelines.compile.base import CompileOrder, Engine


def compile_engine(order: CompileOrder) -> Engine:
    """The typed ONNX as it is. What ONNX Runtime would optimize ahead of time depends on its version and CPU."""
    return Engine(file_name="engine.onnx", data=order.source.read_bytes())
