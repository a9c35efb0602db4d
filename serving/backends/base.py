"""The whole interface between a loaded engine and everything else."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from serving.contract.profile import Precision

Inputs = Mapping[str, NDArray[Any]]  # int64 (B, T) of tokens, or float32 (B, C, H, W) of pixels


@dataclass(frozen=True, kw_only=True)
class LoadOptions:
    """How to load an engine on this machine."""

    precision: Precision
    cpu_isa: str | None = None  # the instruction set it was compiled for, as oneDNN names it: "AVX512_CORE_BF16"
    num_threads: int = 0  # CPU threads; 0 lets the backend decide
    num_streams: int = 1  # batches that run at once: on a share of the CPU's threads each, or in a GPU context each
    alone_threads: int = 0  # CPU threads of a batch that runs alone, where that is not a stream's share; 0: its share
    yields: bool = False  # whether a CPU's engine threads let the server's others go first
    device_index: int = 0  # GPU
    cache_dir: Path | None = None  # where a backend may keep what it compiled at load; None: nowhere


class Backend(Protocol):
    """An engine that is loaded and can run. Thread-safe: infer may be called from one thread at a time per stream."""

    name: str  # "onnxruntime"
    input_names: tuple[str, ...]
    lends_all: bool  # whether it knows LoadOptions.alone_threads

    def infer(self, inputs: Inputs, *, alone: bool = False) -> NDArray[np.float32]:
        """Run one batch: inputs of B items -> (B, D) float32. Raises BackendError.

        alone: nothing runs beside it, so it may have the threads that were set aside for that.
        """

    def realized_precision(self) -> Mapping[str, float]:
        """The share of matrix products that run in each number format, {"bf16": 1.0}; empty if it cannot be known."""

    def close(self) -> None:
        """Free what the engine holds. infer must not be called afterwards."""
