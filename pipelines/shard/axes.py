"""Which axis of each tensor is partitioned over the ranks, and what each operator of a layer does to that axis.

A rank's graph computes with the shapes of its inputs; only numbers written into it (heads, widths, biases) must change.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from pipelines.errors import ShardError
from pipelines.onnx_graph.edit import attribute
from pipelines.shard.constants import RankConstants

ELEMENTWISE = (
    "Abs",
    "Add",
    "Cast",
    "Clip",
    "DequantizeLinear",
    "Div",
    "Erf",
    "Exp",
    "Gelu",
    "Identity",
    "Max",
    "Min",
    "Mul",
    "Neg",
    "Pow",
    "QuantizeLinear",
    "Reciprocal",
    "Relu",
    "Sigmoid",
    "Sqrt",
    "Sub",
    "Tanh",
    "Where",
)
REDUCTIONS = frozenset({"ReduceMax", "ReduceMean", "ReduceSum", "ReduceL2"})


@dataclass(frozen=True, kw_only=True)
class Axis:
    """The partitioned axis of a tensor that each rank has a part of."""

    dim: int
    rank: int  # how many axes the tensor has
    size: int | None = None  # of a rank's part, where a weight tells it

    def is_at(self, dim: int, rank: int) -> bool:
        return (self.dim, self.rank) == (dim, rank)

    @property
    def from_end(self) -> int:
        return self.rank - self.dim


class Axes:
    """The partitioned tensors of a graph, followed node by node."""

    def __init__(self, constants: RankConstants) -> None:
        self._constants = constants
        self._axes: dict[str, Axis] = {}
        self._reduced: set[tuple[str, int]] = set()  # dims of shapes that were reduced to a rank's: (Concat, dim)

    def of(self, name: str) -> Axis | None:
        return self._axes.get(name)

    def set(self, name: str, axis: Axis) -> None:
        self._axes[name] = axis

    def follow(self, node: Any) -> None:
        """Record the partitioned axis of a node's output, and reduce the numbers the node takes. Raises ShardError."""
        partitioned = [self._axes[name] for name in node.input if name in self._axes]
        if not partitioned or node.op_type in ("Shape", "Size"):
            return
        rule = _RULES.get(node.op_type)
        axis = rule(self, node, partitioned[0]) if rule else None
        if axis is None:
            raise ShardError(f"{node.name}: no rule says how a {node.op_type} partitions its output; use tp 1")
        for name in node.output:
            self._axes[name] = axis

    def _elementwise(self, node: Any, _: Axis) -> Axis | None:
        axes = [self._axes[name] for name in node.input if name in self._axes]
        if len({axis.from_end for axis in axes}) > 1:
            return None
        axis = max(axes, key=lambda axis: axis.rank)
        for i, name in enumerate(node.input):
            dims = None if name in self._axes or not name else self._constants.dims(name)
            dim = len(dims) - axis.from_end if dims is not None else -1
            if dims is not None and dim >= 0 and dims[dim] > 1:  # a bias: this rank's part of it
                node.input[i] = self._constants.sliced(name, dim, node.name)
        return axis

    def _same_axis(self, node: Any, axis: Axis) -> Axis | None:
        """Softmax and norms, within each rank's part."""
        dim = attribute(node, "axis", -1) % axis.rank
        return axis if (axis.dim < dim if node.op_type == "LayerNormalization" else axis.dim != dim) else None

    def _reduction(self, node: Any, axis: Axis) -> Axis | None:
        axes = self._ints(node, 1, "axes")
        if axes is None or not attribute(node, "keepdims", 1) or axis.dim in {a % axis.rank for a in axes}:
            return None
        return axis

    def _product(self, node: Any, _: Axis) -> Axis | None:
        left, right = (self._axes.get(name) for name in node.input)
        if left is None or right is None or left.from_end < 3:
            return None
        return left if right.is_at(left.dim, left.rank) else None

    def _transpose(self, node: Any, axis: Axis) -> Axis | None:
        perm = attribute(node, "perm", list(reversed(range(axis.rank))))
        return Axis(dim=perm.index(axis.dim), rank=axis.rank)

    def _unsqueeze(self, node: Any, axis: Axis) -> Axis | None:
        axes = self._ints(node, 1, "axes")
        if axes is None:
            return None
        rank, dim = axis.rank + len(axes), axis.dim
        for new in sorted(a % rank for a in axes):
            dim += new <= dim
        return Axis(dim=dim, rank=rank)

    def _slice(self, node: Any, axis: Axis) -> Axis | None:
        axes = self._ints(node, 3, "axes")
        return axis if axes is not None and axis.dim not in {a % axis.rank for a in axes} else None

    def _concat(self, node: Any, axis: Axis) -> Axis | None:
        axes = [self._axes.get(name) for name in node.input]
        is_same = all(other is not None and other.is_at(axis.dim, axis.rank) for other in axes)
        return axis if is_same and attribute(node, "axis", 0) % axis.rank != axis.dim else None

    def _reshape(self, node: Any, axis: Axis) -> Axis | None:
        """(B, T, H) <-> (B, T, heads, dim), and the repeating of key heads: axes before the partitioned one stay."""
        rank = self._reduce_shape(node, axis.dim)
        if rank is None:
            return None
        head_size = self._number(node.input[1], axis.dim + 1) if rank > axis.rank else None
        if axis.size is not None and head_size is not None and axis.size % head_size:
            raise ShardError(f"{node.name}: a rank would have {axis.size / head_size:g} heads; use a smaller tp")
        return Axis(dim=axis.dim, rank=rank)

    def _number(self, name: str, dim: int) -> int | None:
        """A shape's number at a dim, if it is written into the graph."""
        values, concat = self._constants.values(name), self._constants.producers.get(name)
        if values is None and concat is not None and concat.op_type == "Concat" and dim < len(concat.input):
            values, dim = self._constants.values(concat.input[dim]), 0
        number = None if values is None or dim >= len(values) else int(values[dim])
        return number if number is not None and number > 0 else None

    def _reduce_shape(self, node: Any, dim: int) -> int | None:
        """Reduce the shape that a node takes to a rank's part at this dim. Returns the shape's length."""
        name = node.input[1]
        values = self._constants.values(name)
        if values is not None:
            if values[dim] > 0:
                shape = [*map(int, values)]
                shape[dim] = self._part(node, shape[dim])
                node.input[1] = self._constants.add(f"{node.name}/shape", np.array(shape, np.int64))
            return len(values)
        concat = self._constants.producers.get(name)
        while concat is not None and concat.op_type in ("Where", "Reshape", "Identity", "Cast"):  # Expand's own -1
            concat = self._constants.producers.get(concat.input[2 if concat.op_type == "Where" else 0])
        if concat is None or concat.op_type != "Concat" or dim >= len(concat.input):
            return None
        number = self._constants.values(concat.input[dim])
        if number is not None and number.size == 1 and number.item() > 0 and (concat.name, dim) not in self._reduced:
            part = np.array([self._part(node, number.item())], np.int64)
            concat.input[dim] = self._constants.add(f"{concat.name}/part{dim}", part)
            self._reduced.add((concat.name, dim))
        return len(concat.input)

    def _part(self, node: Any, number: int) -> int:
        if number % self._constants.tp:
            raise ShardError(f"{node.name}: {number} heads do not divide by {self._constants.tp}; use a smaller tp")
        return number // self._constants.tp

    def _ints(self, node: Any, position: int, name: str) -> list[int] | None:
        """Axes from an input, as newer operators take them, or from an attribute, as older ones do."""
        if len(node.input) > position and node.input[position]:
            values = self._constants.values(node.input[position])
            return None if values is None else [*map(int, values)]
        axes: list[int] | None = attribute(node, name, None)
        return axes


_RULES = {
    **dict.fromkeys(ELEMENTWISE, Axes._elementwise),
    **dict.fromkeys(REDUCTIONS, Axes._reduction),
    "Softmax": Axes._same_axis,
    "LayerNormalization": Axes._same_axis,
    "MatMul": Axes._product,
    "Transpose": Axes._transpose,
    "Unsqueeze": Axes._unsqueeze,
    "Slice": Axes._slice,
    "Concat": Axes._concat,
    "Reshape": Axes._reshape,
    "Expand": Axes._reshape,
}
