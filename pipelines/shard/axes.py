"""Which axis of each tensor is divided over the ranks: what every operator of a layer does to it. Pure but for shapes.

A rank's graph computes with the shapes it finds; only numbers written into it (heads, widths, biases) must change.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from pipelines.errors import ShardError

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
    """Of a tensor that each rank has a part of."""

    place: int
    rank: int  # how many axes the tensor has
    size: int | None = None  # of a rank's part, where a weight says it

    def is_at(self, place: int, rank: int) -> bool:
        return (self.place, self.rank) == (place, rank)

    @property
    def from_end(self) -> int:
        return self.rank - self.place


class Constants(Protocol):
    """What is known of a graph's constants (pipelines.shard)."""

    tp: int
    made_by: dict[str, Any]

    def dims(self, name: str) -> list[int] | None: ...
    def values(self, name: str) -> Any: ...
    def add(self, name: str, values: Any) -> str: ...
    def sliced(self, name: str, axis: int, what: str) -> str: ...


class Axes:
    """The divided tensors of a graph, followed node by node."""

    def __init__(self, constants: Constants) -> None:
        self._constants = constants
        self._found: dict[str, Axis] = {}
        self._lessened: set[tuple[str, int]] = set()  # shapes that were changed: by the name of their Concat, and where

    def of(self, name: str) -> Axis | None:
        return self._found.get(name)

    def set(self, name: str, axis: Axis) -> None:
        self._found[name] = axis

    def follow(self, node: Any) -> None:
        """Note which axis of a node's output is divided, and change the numbers it takes. Raises ShardError."""
        divided = [self._found[name] for name in node.input if name in self._found]
        if not divided or node.op_type in ("Shape", "Size"):
            return
        rule = _RULES.get(node.op_type)
        axis = rule(self, node, divided[0]) if rule else None
        if axis is None:
            raise ShardError(
                f"{node.name}: it is not known how a {node.op_type} of a divided tensor is divided; use tp 1"
            )
        for name in node.output:
            self._found[name] = axis

    def _elementwise(self, node: Any, _: Axis) -> Axis | None:
        found = [self._found[name] for name in node.input if name in self._found]
        if len({axis.from_end for axis in found}) > 1:
            return None
        widest = max(found, key=lambda axis: axis.rank)
        for i, name in enumerate(node.input):
            dims = None if name in self._found or not name else self._constants.dims(name)
            place = len(dims) - widest.from_end if dims is not None else -1
            if dims is not None and place >= 0 and dims[place] > 1:  # a bias: this rank's part of it
                node.input[i] = self._constants.sliced(name, place, node.name)
        return widest

    def _same_axis(self, node: Any, axis: Axis) -> Axis | None:
        """Softmax and norms, within each rank's part."""
        place = _attribute(node, "axis", -1) % axis.rank
        return axis if (axis.place < place if node.op_type == "LayerNormalization" else axis.place != place) else None

    def _reduction(self, node: Any, axis: Axis) -> Axis | None:
        axes = self._ints(node, 1, "axes")
        if axes is None or not _attribute(node, "keepdims", 1) or axis.place in {a % axis.rank for a in axes}:
            return None
        return axis

    def _product(self, node: Any, _: Axis) -> Axis | None:
        left, right = (self._found.get(name) for name in node.input)
        if left is None or right is None or left.from_end < 3:
            return None
        return left if right.is_at(left.place, left.rank) else None

    def _transpose(self, node: Any, axis: Axis) -> Axis | None:
        perm = _attribute(node, "perm", list(reversed(range(axis.rank))))
        return Axis(place=perm.index(axis.place), rank=axis.rank)

    def _unsqueeze(self, node: Any, axis: Axis) -> Axis | None:
        axes = self._ints(node, 1, "axes")
        if axes is None:
            return None
        rank, place = axis.rank + len(axes), axis.place
        for new in sorted(a % rank for a in axes):
            place += new <= place
        return Axis(place=place, rank=rank)

    def _slice(self, node: Any, axis: Axis) -> Axis | None:
        axes = self._ints(node, 3, "axes")
        return axis if axes is not None and axis.place not in {a % axis.rank for a in axes} else None

    def _concat(self, node: Any, axis: Axis) -> Axis | None:
        found = [self._found.get(name) for name in node.input]
        same = all(other is not None and other.is_at(axis.place, axis.rank) for other in found)
        return axis if same and _attribute(node, "axis", 0) % axis.rank != axis.place else None

    def _reshape(self, node: Any, axis: Axis) -> Axis | None:
        """(B, T, H) <-> (B, T, heads, dim), and the repeating of key heads: what stands before the axis stays."""
        rank = self._lessen(node, axis.place)
        if rank is None:
            return None
        dim = self._number(node.input[1], axis.place + 1) if rank > axis.rank else None
        if axis.size is not None and dim is not None and axis.size % dim:
            raise ShardError(f"{node.name}: a rank would have {axis.size / dim:g} heads; use a smaller tp")
        return Axis(place=axis.place, rank=rank)

    def _number(self, name: str, place: int) -> int | None:
        """What a shape has at a place, if that is written into the graph."""
        values, concat = self._constants.values(name), self._constants.made_by.get(name)
        if values is None and concat is not None and concat.op_type == "Concat" and place < len(concat.input):
            values, place = self._constants.values(concat.input[place]), 0
        found = None if values is None or place >= len(values) else int(values[place])
        return found if found is not None and found > 0 else None

    def _lessen(self, node: Any, place: int) -> int | None:
        """Have the shape that a node takes ask for a rank's part at this place; how many numbers it has."""
        name = node.input[1]
        values = self._constants.values(name)
        if values is not None:
            if values[place] > 0:
                shape = [*map(int, values)]
                shape[place] = self._part(node, shape[place])
                node.input[1] = self._constants.add(f"{node.name}/shape", np.array(shape, np.int64))
            return len(values)
        concat = self._constants.made_by.get(name)
        while concat is not None and concat.op_type in ("Where", "Reshape", "Identity", "Cast"):  # Expand's own -1
            concat = self._constants.made_by.get(concat.input[2 if concat.op_type == "Where" else 0])
        if concat is None or concat.op_type != "Concat" or place >= len(concat.input):
            return None
        number = self._constants.values(concat.input[place])
        if number is not None and number.size == 1 and number.item() > 0 and (concat.name, place) not in self._lessened:
            part = np.array([self._part(node, number.item())], np.int64)
            concat.input[place] = self._constants.add(f"{concat.name}/part{place}", part)
            self._lessened.add((concat.name, place))
        return len(concat.input)

    def _part(self, node: Any, number: int) -> int:
        if number % self._constants.tp:
            raise ShardError(f"{node.name}: {number} heads do not divide by {self._constants.tp}; use a smaller tp")
        return number // self._constants.tp

    def _ints(self, node: Any, place: int, attribute: str) -> list[int] | None:
        """Axes as newer operators take them, an input, or as older ones do, an attribute."""
        if len(node.input) > place and node.input[place]:
            values = self._constants.values(node.input[place])
            return None if values is None else [*map(int, values)]
        found: list[int] | None = _attribute(node, attribute, None)
        return found


def _attribute(node: Any, name: str, otherwise: Any) -> Any:
    from onnx import helper

    return next((helper.get_attribute_value(a) for a in node.attribute if a.name == name), otherwise)


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
