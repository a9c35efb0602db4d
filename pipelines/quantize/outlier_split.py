"""Outlier channel splitting: a product becomes the sum of two, and the graph computes the same.

A few channels that a feed-forward block's activation function gives are many times larger than the others, and one
scale for all of them leaves the others a handful of steps. A channel is a column of the weight before the function and
a row of the weight after it, so the outliers can have small products of their own, which stay in high precision:
`f(x A) B = f(x A1) B1 + f(x A2) B2`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipelines.onnx_graph.edit import replace_nodes
from pipelines.quantize.products import GraphIndex

# Operators that treat every channel alike.
_ELEMENTWISE = frozenset(
    {
        *("Abs", "Add", "Cast", "Clip", "Div", "Elu", "Erf", "Exp", "Gelu", "HardSigmoid", "HardSwish", "LeakyRelu"),
        *("Mish", "Mul", "Neg", "Pow", "Relu", "Selu", "Sigmoid", "Softplus", "Sqrt", "Sub", "Tanh"),
    }
)
INLIERS, OUTLIERS = "rest", "apart"  # suffixes of names in typed ONNX, whose bytes promise them


@dataclass(frozen=True, kw_only=True)
class Chain:
    """How an activation's channels are computed: products by weights, then elementwise operators."""

    down: str  # the product that takes the activation
    roots: tuple[str, ...]  # the products whose weights' columns are the channels
    between: tuple[str, ...]  # elementwise nodes from the roots to the activation, in the graph's order


def chain_of(index: GraphIndex, down: Any) -> Chain | None:
    """The chain that ends in the product `down`; None where one channel is not computed apart from the others."""
    weight = index.arrays[down.input[1]]
    roots: list[str] = []
    between: list[str] = []
    pending, seen = [down.input[0]], {down.output[0]}
    members = {down.name}
    while pending:
        name = pending.pop()
        if name in seen:
            continue
        seen.add(name)
        node = index.producers.get(name)
        if node is None or name in index.outputs or not node.name:
            return None
        if index.is_product(node) and index.arrays[node.input[1]].shape[1] == weight.shape[0]:
            roots.append(node.name)
        elif node.op_type in _ELEMENTWISE:
            between.append(node.name)
            pending.extend(i for i in node.input if i and not _is_per_channel(index.arrays.get(i), len(weight)))
        else:
            return None
        members.add(node.name)
    if not roots or not between:
        return None
    values = {name for name, node in index.producers.items() if node.name in members - {down.name}}
    if any(consumer.name not in members for name in values for consumer in index.consumers[name]):
        return None  # a node outside the chain needs all channels
    order = dict.fromkeys(node.name for node in index.producers.values())
    return Chain(
        down=down.name,
        roots=tuple(name for name in order if name in roots),
        between=tuple(name for name in order if name in between),
    )


def split_outliers(model: Any, chains: Mapping[str, Chain], channels: Mapping[str, NDArray[np.int64]]) -> None:
    """Rewrite the graph so that `channels[activation]` have products of their own. In place.

    The other channels are then `ACTIVATION/rest`, and a split product's parts are named `NODE/rest` and `NODE/apart`.
    """
    graph, index = model.graph, GraphIndex(model)
    nodes = {node.name: node for node in graph.node}
    replacements: dict[str, list[Any]] = {}
    removed: set[str] = set()
    for activation, chain in chains.items():
        num_channels = len(index.arrays[nodes[chain.down].input[1]])
        outliers = channels[activation]
        parts = {INLIERS: np.setdiff1d(np.arange(num_channels), outliers), OUTLIERS: outliers}
        copies = [
            copy for part, chosen in parts.items() for copy in _copy_chain(graph, index, nodes, chain, part, chosen)
        ]
        replacements[chain.down] = [*copies, _sum(nodes[chain.down])]
        removed |= {*chain.roots, *chain.between}
    replace_nodes(
        graph, [new for node in graph.node if node.name not in removed for new in replacements.get(node.name, [node])]
    )


def _is_per_channel(array: NDArray[Any] | None, size: int) -> bool:
    """Whether a constant is one number, or one for each channel."""
    return array is not None and (array.size == 1 or array.shape in ((size,), (1, size), (1, 1, size)))


def _copy_chain(
    graph: Any, index: GraphIndex, nodes: Mapping[str, Any], chain: Chain, part: str, channels: NDArray[np.int64]
) -> Sequence[Any]:
    """Copies of the chain's nodes that compute some of its channels. Adds their constants to the graph."""
    from onnx import numpy_helper

    size = len(index.arrays[nodes[chain.down].input[1]])
    members = {*chain.roots, *chain.between, chain.down}
    in_order = dict.fromkeys(node.name for node in index.producers.values() if node.name in members)
    copies: list[Any] = []
    for name in (*(name for name in in_order if name != chain.down), chain.down):
        node = nodes[name]
        copy = type(node).FromString(node.SerializeToString())
        copy.name = f"{name}/{part}"
        copy.output[:] = [f"{output}/{part}" for output in node.output]
        for position, source in enumerate(node.input):
            producer, array = index.producers.get(source), index.arrays.get(source)
            if name in chain.roots and position == 0:
                continue
            sliced = _slice(array, name, chain, position, channels, size) if array is not None else None
            if sliced is not None:
                copy.input[position] = f"{source}/{chain.down}/{part}"
                if all(tensor.name != copy.input[position] for tensor in graph.initializer):
                    tensor = numpy_helper.from_array(np.ascontiguousarray(sliced), copy.input[position])
                    graph.initializer.append(tensor)
            elif producer is not None and producer.name in members:
                copy.input[position] = f"{source}/{part}"
        copies.append(copy)
    return copies


def _slice(
    array: NDArray[Any], node: str, chain: Chain, position: int, channels: NDArray[np.int64], size: int
) -> NDArray[Any] | None:
    """The channels of a constant that a chain's node takes; None for one that all channels share."""
    if node in chain.roots:
        return array[:, channels]
    if node == chain.down and position == 1:
        return array[channels]
    return array[..., channels] if array.size > 1 and array.shape[-1] == size else None


def _sum(down: Any) -> Any:
    from onnx import helper

    addends = [f"{down.output[0]}/{part}" for part in (INLIERS, OUTLIERS)]
    return helper.make_node("Add", addends, list(down.output), name=f"{down.name}/sum")
