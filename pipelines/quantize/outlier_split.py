"""Set the outlying channels of an activation apart: a product becomes the sum of two, and the graph computes the same.

A few of the channels that a feed-forward block's activation function gives out are many times larger than the others,
and one scale for all of them leaves most of them a handful of steps. The channels are columns of the weight before the
function and rows of the weight behind it, so that they can be computed beside the others, by a narrow product that
stays wide in precision: `f(x A) B = f(x A1) B1 + f(x A2) B2`.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

# Operators that treat every channel alike.
_ELEMENTWISE = frozenset(
    {
        *("Abs", "Add", "Cast", "Clip", "Div", "Elu", "Erf", "Exp", "Gelu", "HardSigmoid", "HardSwish", "LeakyRelu"),
        *("Mish", "Mul", "Neg", "Pow", "Relu", "Selu", "Sigmoid", "Softplus", "Sqrt", "Sub", "Tanh"),
    }
)
REST, APART = "rest", "apart"


@dataclass(frozen=True, kw_only=True)
class Chain:
    """How an activation's channels come about: products by weights, and what is done to each channel by itself."""

    down: str  # the product that takes the activation
    roots: tuple[str, ...]  # the products by weights whose columns are the channels
    between: tuple[str, ...]  # elementwise nodes from the roots to the activation, in the graph's order


class Indexed:
    """A graph's nodes by what they give and who takes it, and its weights' arrays."""

    def __init__(self, model: Any) -> None:
        from onnx import numpy_helper

        graph = model.graph
        self.maker = {output: node for node in graph.node for output in node.output}
        self.users: dict[str, list[Any]] = defaultdict(list)
        for node in graph.node:
            for name in dict.fromkeys(node.input):
                self.users[name].append(node)
        self.outputs = {value.name for value in graph.output}
        self.arrays: dict[str, NDArray[Any]] = {t.name: numpy_helper.to_array(t) for t in graph.initializer}
        for node in graph.node:
            if node.op_type == "Constant" and node.attribute[0].HasField("t"):
                self.arrays[node.output[0]] = numpy_helper.to_array(node.attribute[0].t)

    def is_product(self, node: Any) -> bool:
        """A MatMul of an activation by a weight matrix."""
        weight = self.arrays.get(node.input[1]) if node.op_type == "MatMul" else None
        return weight is not None and weight.ndim == 2 and node.input[0] not in self.arrays


def chain_of(found: Indexed, down: Any) -> Chain | None:
    """The chain that ends in the product `down`; None where its channels are not computed each by itself."""
    weight = found.arrays[down.input[1]]
    roots: list[str] = []
    between: list[str] = []
    open_names, seen = [down.input[0]], {down.output[0]}
    takers = {down.name}
    while open_names:
        name = open_names.pop()
        if name in seen:
            continue
        seen.add(name)
        node = found.maker.get(name)
        if node is None or name in found.outputs or not node.name:
            return None
        if found.is_product(node) and found.arrays[node.input[1]].shape[1] == weight.shape[0]:
            roots.append(node.name)
        elif node.op_type in _ELEMENTWISE:
            between.append(node.name)
            open_names.extend(i for i in node.input if i and not _is_of_channels(found.arrays.get(i), len(weight)))
        else:
            return None
        takers.add(node.name)
    if not roots or not between:
        return None
    members = set(roots) | set(between)
    given = {name for name, node in found.maker.items() if node.name in members}
    if any(user.name not in takers for name in given for user in found.users[name]):
        return None  # somebody else needs the whole
    order = [node.name for node in found.maker.values() if node.name in members]
    in_order = list(dict.fromkeys(order))
    return Chain(
        down=down.name,
        roots=tuple(n for n in in_order if n in roots),
        between=tuple(n for n in in_order if n in between),
    )


def set_apart(model: Any, chains: Mapping[str, Chain], channels: Mapping[str, NDArray[np.int64]]) -> None:
    """Rewrite the graph so that `channels[activation]` are computed beside the others. In place.

    The activation's other channels are then `ACTIVATION/rest`, and the products that were one are named
    `NODE/rest` and `NODE/apart`.
    """
    from onnx import numpy_helper

    graph, found = model.graph, Indexed(model)
    nodes = {node.name: node for node in graph.node}
    instead: dict[str, list[Any]] = {}
    gone: set[str] = set()
    for activation, chain in chains.items():
        rows = len(found.arrays[nodes[chain.down].input[1]])
        parts = {REST: np.setdiff1d(np.arange(rows), channels[activation]), APART: channels[activation]}
        written = [
            node
            for part, chosen in parts.items()
            for node in _part(graph, found, nodes, chain, part, chosen, numpy_helper)
        ]
        instead[chain.down] = [*written, _sum(nodes[chain.down])]
        gone |= {*chain.roots, *chain.between}
    kept = [new for node in graph.node if node.name not in gone for new in instead.get(node.name, [node])]
    used = {name for node in kept for name in node.input} | found.outputs
    weights = [tensor for tensor in graph.initializer if tensor.name in used]
    for field, values in (("node", kept), ("initializer", weights)):
        copies = [type(value).FromString(value.SerializeToString()) for value in values]
        graph.ClearField(field)
        getattr(graph, field).extend(copies)


def _is_of_channels(array: NDArray[Any] | None, size: int) -> bool:
    """A constant that is one number, or one for each channel."""
    return array is not None and (array.size == 1 or array.shape in ((size,), (1, size), (1, 1, size)))


def _part(
    graph: Any,
    found: Indexed,
    nodes: Mapping[str, Any],
    chain: Chain,
    part: str,
    chosen: NDArray[np.int64],
    numpy_helper: Any,
) -> Sequence[Any]:
    """Copies of the chain's nodes for some of its channels."""
    down = nodes[chain.down]
    size = len(found.arrays[down.input[1]])
    members = {*chain.roots, *chain.between, chain.down}
    copies: list[Any] = []
    for name in (*(n.name for n in found.maker.values() if n.name in members and n.name != chain.down), chain.down):
        if any(copy.name == f"{name}/{part}" for copy in copies):
            continue
        node = nodes[name]
        copy = type(node).FromString(node.SerializeToString())
        copy.name = f"{name}/{part}"
        copy.output[:] = [f"{output}/{part}" for output in node.output]
        for index, source in enumerate(node.input):
            maker = found.maker.get(source)
            array = found.arrays.get(source)
            if name in chain.roots:
                if index == 0:
                    continue
                cut: NDArray[Any] | None = array[:, chosen] if array is not None else None
            elif name == chain.down and index == 1 and array is not None:
                cut = array[chosen]
            elif array is not None and array.size > 1 and array.shape[-1] == size:
                cut = array[..., chosen]
            else:
                cut = None
            if cut is not None:
                copy.input[index] = f"{source}/{chain.down}/{part}"
                if all(t.name != copy.input[index] for t in graph.initializer):
                    graph.initializer.append(numpy_helper.from_array(np.ascontiguousarray(cut), copy.input[index]))
            elif maker is not None and maker.name in members:
                copy.input[index] = f"{source}/{part}"
        copies.append(copy)
    return copies


def _sum(down: Any) -> Any:
    from onnx import helper

    addends = [f"{down.output[0]}/{part}" for part in (REST, APART)]
    return helper.make_node("Add", addends, list(down.output), name=f"{down.name}/sum")
