"""Matrix products of an activation by a weight: the places of a graph that fp8 and int8 quantize."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from typing import Any

from numpy.typing import NDArray

ALIGNMENT = 16  # fp8 and int8 units take rows and columns in sixteens


@dataclass(frozen=True, kw_only=True)
class Product:
    """A matrix product of an activation by a weight."""

    node: str
    activation: str
    weight: str  # the initializer's name
    axis: int = 1  # of the weight's output columns: 1 for (K, N), 0 for a transposed (N, K)


class GraphIndex:
    """A graph's nodes by their outputs and inputs, and the arrays of its constants."""

    def __init__(self, model: Any) -> None:
        from onnx import numpy_helper

        graph = model.graph
        self.producers = {output: node for node in graph.node for output in node.output}
        self.consumers: dict[str, list[Any]] = defaultdict(list)
        for node in graph.node:
            for name in dict.fromkeys(node.input):
                self.consumers[name].append(node)
        self.outputs = {value.name for value in graph.output}
        self.arrays: dict[str, NDArray[Any]] = {t.name: numpy_helper.to_array(t) for t in graph.initializer}
        for node in graph.node:
            if node.op_type == "Constant" and node.attribute[0].HasField("t"):
                self.arrays[node.output[0]] = numpy_helper.to_array(node.attribute[0].t)

    def is_product(self, node: Any) -> bool:
        """Whether a node is a MatMul of an activation by a weight matrix."""
        weight = self.arrays.get(node.input[1]) if node.op_type == "MatMul" else None
        return weight is not None and weight.ndim == 2 and node.input[0] not in self.arrays


def is_aligned(*sizes: int) -> bool:
    return not any(size % ALIGNMENT for size in sizes)
