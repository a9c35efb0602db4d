"""Compare arrays with what an engine takes and gives: every backend refuses the same mistakes in the same words."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from serving.backends.base import Inputs
from serving.errors import BackendError

Range = tuple[int, int | None]  # smallest, largest; None: no limit
KINDS = {"int64": "(B, T)", "float32": "(B, C, H, W)"}  # what an input may be: token ids, or pixels
RANKS = {"int64": 2, "float32": 4}


@dataclass(frozen=True, kw_only=True)
class InputSpec:
    """One input of an engine."""

    name: str
    dtype: str  # "int64" or "float32"
    axes: tuple[Range, ...]  # the first is B


def engine_problems(specs: Sequence[InputSpec]) -> list[str]:
    """What about an engine's inputs this server cannot feed."""
    return [
        f"input {spec.name} is {spec.dtype} with {len(spec.axes)} axes, expected "
        + " or ".join(f"{dtype} {shape}" for dtype, shape in KINDS.items())
        for spec in specs
        if RANKS.get(spec.dtype) != len(spec.axes)
    ]


def check_inputs(inputs: Inputs, specs: Sequence[InputSpec]) -> int:
    """The B that all inputs share. Raises BackendError listing everything that does not fit the engine."""
    problems = []
    if set(inputs) != {spec.name for spec in specs}:
        problems.append(f"inputs are {sorted(inputs)}, the engine takes {sorted(spec.name for spec in specs)}")
    given = [(spec, inputs[spec.name]) for spec in specs if spec.name in inputs]
    problems += [
        f"{spec.name} is {a.dtype}, the engine takes {spec.dtype}" for spec, a in given if a.dtype != spec.dtype
    ]
    shapes = {array.shape for _, array in given}
    if len(shapes) > 1:  # no task has inputs of several shapes in one engine
        problems.append(f"inputs have the shapes {sorted(shapes)}, the engine takes one shape")
    for spec, array in given:
        if array.ndim != len(spec.axes):
            problems.append(f"{spec.name} has the shape {array.shape}, the engine takes {KINDS[spec.dtype]}")
            continue
        axes = KINDS[spec.dtype].strip("()").split(", ")
        for axis, size, (low, high) in zip(axes, array.shape, spec.axes, strict=True):
            if size < low or (high is not None and size > high):
                problems.append(f"{axis} is {size}, the engine takes {low} to {'any' if high is None else high}")
    if problems or not given:
        # inputs of one shape have its mistake in common: it is said once
        raise BackendError("; ".join(dict.fromkeys(problems)) or "there are no inputs")
    return int(given[0][1].shape[0])


def check_output(output: NDArray[np.generic], num_items: int) -> NDArray[np.float32]:
    """The output as float32 (B, D). Raises BackendError for another shape or kind."""
    if output.ndim != 2 or output.shape[0] != num_items or not np.issubdtype(output.dtype, np.floating):
        raise BackendError(f"the engine gave {output.dtype} {output.shape}, expected float32 ({num_items}, D)")
    return np.ascontiguousarray(output, dtype=np.float32)
