"""The constants of one rank's graph: their shapes and values, and the rank's slices of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from pipelines.errors import ShardError
from pipelines.onnx_graph import external_data
from pipelines.onnx_graph.edit import add_constant, attribute

# Operators through which a weight reaches its product: casts and Q/DQ pairs.
CARRIERS = ("Identity", "Cast", "Transpose", "QuantizeLinear", "DequantizeLinear")


class RankConstants:
    """A graph's constants, of which this rank's slices are made where they are first asked for."""

    def __init__(self, graph: Any, folder: Path, rank: int, tp: int) -> None:
        self.tp = tp
        self.nodes: list[Any] = []  # the rank's graph so far
        self.producers: dict[str, Any] = {name: node for node in graph.node for name in node.output}
        self._graph, self._folder, self._rank = graph, folder, rank
        self._tensors: dict[str, Any] = {tensor.name: tensor for tensor in graph.initializer}
        constants = [node for node in graph.node if node.op_type == "Constant"]
        self._tensors |= {node.output[0]: a.t for node in constants for a in node.attribute if a.name == "value"}
        self._slices: dict[tuple[str, int], str] = {}

    def dims(self, name: str) -> list[int] | None:
        """The shape of a constant; None for what is computed from the inputs."""
        if name in self._tensors:
            return list(self._tensors[name].dims)
        node = self.producers.get(name)
        if node is None or node.op_type not in CARRIERS:
            return None
        dims = self.dims(node.input[0])
        return [dims[i] for i in _perm(node, len(dims))] if dims is not None else None

    def values(self, name: str) -> Any:
        """A small constant's values; None for what is computed."""
        tensor = self._tensors.get(name)
        return None if tensor is None else external_data.tensor_array(tensor, self._folder)

    def add(self, name: str, values: Any) -> str:
        if name not in self._tensors:
            add_constant(self._graph, name, np.ascontiguousarray(values))
            self._tensors[name] = self._graph.initializer[-1]
        return name

    def sliced(self, name: str, axis: int, node_name: str) -> str:
        """The name of this rank's slice of a constant, also one behind casts and Q/DQ pairs. Raises ShardError.

        node_name: the node that takes it, for the message.
        """
        if (name, axis) in self._slices:
            return self._slices[name, axis]
        target = f"{name}/rank{self._rank}/axis{axis}"
        if name in self._tensors:
            tensor = self._tensors[name]
            if tensor.dims[axis] % self.tp:
                raise ShardError(f"{node_name}: {tensor.dims[axis]} do not divide by {self.tp}; use a smaller tp")
            self._slice(tensor, axis, target)
        else:
            node = self.producers.get(name)
            if node is None or node.op_type not in CARRIERS:
                raise ShardError(f"{node_name} has no constant weight: it cannot be partitioned")
            self.nodes.append(self._sliced_carrier(node, axis, target, node_name))
        self._slices[name, axis] = target
        return target

    def _sliced_carrier(self, node: Any, axis: int, target: str, node_name: str) -> Any:
        copy = type(node)()
        copy.CopyFrom(node)
        copy.name, copy.output[0] = f"{node.name}/rank{self._rank}/axis{axis}", target
        dims = self.dims(node.input[0]) or []
        copy.input[0] = self.sliced(node.input[0], _perm(node, len(dims))[axis], node_name)
        is_per_channel = attribute(node, "axis", 1) % max(len(dims), 1) == axis
        for i in range(1, len(node.input)):  # scales and zero points of Q/DQ: one, or one for each channel
            if is_per_channel and np.prod(self.dims(node.input[i]) or [1]) > 1:
                copy.input[i] = self.sliced(node.input[i], 0, node_name)
        return copy

    def _slice(self, tensor: Any, axis: int, name: str) -> None:
        width = tensor.dims[axis] // self.tp
        columns = range(self._rank * width, (self._rank + 1) * width)
        values = np.take(external_data.tensor_array(tensor, self._folder), columns, axis)
        part = self._graph.initializer.add()
        part.name, part.data_type = name, tensor.data_type
        part.dims.extend(values.shape)
        part.raw_data = np.ascontiguousarray(values).tobytes()
        self._tensors[name] = part


def _perm(node: Any, rank: int) -> list[int]:
    """Output axis -> input axis."""
    if node.op_type != "Transpose":
        return list(range(rank))
    perm: list[int] = attribute(node, "perm", list(reversed(range(rank))))
    return perm
