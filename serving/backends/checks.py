"""Compare arrays with what an engine takes and gives: every backend refuses the same mistakes in the same words."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from serving.backends.base import Inputs
from serving.errors import BackendError

Range = tuple[int, int | None]  # smallest, largest; None: no limit


def check_inputs(inputs: Inputs, names: Sequence[str], *, batch: Range, tokens: Range) -> tuple[int, int]:
    """The (B, T) that all inputs share. Raises BackendError listing everything that does not fit the engine."""
    problems = []
    if set(inputs) != set(names):
        problems.append(f"inputs are {sorted(inputs)}, the engine takes {sorted(names)}")
    shapes = {array.shape for array in inputs.values()}
    if len(shapes) != 1 or len(next(iter(shapes))) != 2:
        problems.append(f"inputs have the shapes {sorted(shapes)}, the engine takes one shape (B, T)")
    else:
        for axis, size, (low, high) in zip("BT", next(iter(shapes)), (batch, tokens), strict=True):
            if size < low or (high is not None and size > high):
                problems.append(f"{axis} is {size}, the engine takes {low} to {'any' if high is None else high}")
    problems += [f"{name} is {a.dtype}, the engine takes int64" for name, a in inputs.items() if a.dtype != np.int64]
    if problems:
        raise BackendError("; ".join(problems))
    num_items, width = next(iter(shapes))
    return num_items, width


def check_output(output: NDArray[np.generic], num_items: int) -> NDArray[np.float32]:
    """The output as float32 (B, D). Raises BackendError for another shape or kind."""
    if output.ndim != 2 or output.shape[0] != num_items or not np.issubdtype(output.dtype, np.floating):
        raise BackendError(f"the engine gave {output.dtype} {output.shape}, expected float32 ({num_items}, D)")
    return np.ascontiguousarray(output, dtype=np.float32)
