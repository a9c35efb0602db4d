"""Run an fp32 graph over batches of texts: the same figures on every machine, and its weights held once."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

from serving.backends.base import Inputs

Figures = TypeVar("Figures")


def session(path: Path) -> Any:
    """An `onnxruntime.InferenceSession` that runs each batch on the thread that calls it."""
    import onnxruntime

    config = onnxruntime.SessionOptions()
    config.log_severity_level = 3
    config.intra_op_num_threads = config.inter_op_num_threads = 1
    # Packed weights are a second copy of all of them.
    config.add_session_config_entry("session.disable_prepacking", "1")
    return onnxruntime.InferenceSession(path, config, providers=["CPUExecutionProvider"])


def in_parallel(function: Callable[[Inputs], Figures], batches: Sequence[Inputs]) -> list[Figures]:
    """Batches side by side, each on one thread: the same figures on any number of cores."""
    with ThreadPoolExecutor(max_workers=len(os.sched_getaffinity(0))) as pool:
        return list(pool.map(function, batches))
