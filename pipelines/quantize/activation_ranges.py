"""The range of each channel of an activation, measured by running the fp32 graph over calibration texts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipelines.onnx_graph.session import in_parallel, session
from serving.backends.base import Inputs

Array = NDArray[np.float32]
_MIN_MAGNITUDE = 1e-5  # of a channel that no text used


@dataclass(frozen=True, kw_only=True)
class Range:
    """The least and the largest value of each channel over the calibration texts. Shapes (K,)."""

    least: Array
    largest: Array

    @property
    def magnitude(self) -> Array:
        return np.maximum(np.maximum(np.abs(self.least), np.abs(self.largest)), np.float32(_MIN_MAGNITUDE))


def activation_ranges(
    model: Any, num_channels: Mapping[str, int], batches: Sequence[Inputs], folder: Path
) -> list[dict[str, Range]]:
    """For each batch, the range of each activation that has a row for each token.

    num_channels: activation -> K. folder: for the instrumented graph, which is removed.
    """
    path = folder / "ranges.onnx"
    path.write_bytes(_with_ranges(model, num_channels))
    instrumented = session(path)
    path.unlink()
    outputs = [f"{name}/{figure}" for name in num_channels for figure in ("least", "largest", "shape")]

    def run(batch: Inputs) -> dict[str, Range]:
        values = instrumented.run(outputs, dict(batch))
        return {
            name: Range(least=least, largest=largest)
            for name, least, largest, shape in zip(num_channels, values[::3], values[1::3], values[2::3], strict=True)
            if int(np.prod(shape[:-1])) > 1
        }

    return in_parallel(run, batches)


def merged(ranges: Sequence[Mapping[str, Range]]) -> dict[str, Range]:
    """The ranges over several batches."""
    names = sorted({name for each in ranges for name in each})
    return {
        name: Range(
            least=np.min([each[name].least for each in ranges if name in each], axis=0),
            largest=np.max([each[name].largest for each in ranges if name in each], axis=0),
        )
        for name in names
    }


def _with_ranges(model: Any, num_channels: Mapping[str, int]) -> bytes:
    """Three more outputs for each activation: the least and the largest value of each channel, and its shape."""
    import onnx
    from onnx import TensorProto, helper

    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    graph = copy.graph
    graph.initializer.append(helper.make_tensor("ranges/rows", TensorProto.INT64, [1], [0]))
    for name, size in num_channels.items():
        flat = helper.make_tensor(f"{name}/flat-shape", TensorProto.INT64, [2], [-1, size])
        graph.initializer.append(flat)
        graph.node.extend(
            [
                helper.make_node("Reshape", [name, flat.name], [f"{name}/flat"]),
                helper.make_node("ReduceMin", [f"{name}/flat", "ranges/rows"], [f"{name}/least"], keepdims=0),
                helper.make_node("ReduceMax", [f"{name}/flat", "ranges/rows"], [f"{name}/largest"], keepdims=0),
                helper.make_node("Shape", [name], [f"{name}/shape"]),
            ]
        )
        for figure, kind in (
            ("least", TensorProto.FLOAT),
            ("largest", TensorProto.FLOAT),
            ("shape", TensorProto.INT64),
        ):
            graph.output.append(helper.make_tensor_value_info(f"{name}/{figure}", kind, None))
    return bytes(copy.SerializeToString())
