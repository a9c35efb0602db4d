"""What goes into a compiler, what comes out of it, and what each compiler's module must have."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from serving.contract.profile import Precision, ShapeRange


@dataclass(frozen=True, kw_only=True)
class CompileOrder:
    """One engine to make."""

    source: Path  # the typed ONNX; it may have external data
    precision: Precision
    shapes: ShapeRange
    compute_capability: str | None = None  # "8.9"; of a GPU
    cpu_isa: str | None = None  # "AVX512_CORE_BF16"; of a CPU; None: whatever this machine has


@dataclass(frozen=True, kw_only=True)
class Engine:
    """A compiler's output."""

    file_name: str  # "engine.plan", "engine.blob" or "engine.onnx"
    data: bytes
    facts: Mapping[str, Any] = field(default_factory=dict)


class Compiler(Protocol):
    """A module of this package."""

    def compile_engine(self, order: CompileOrder) -> Engine:
        """The order's engine: the same order gives the same bytes. Raises CompileError."""
