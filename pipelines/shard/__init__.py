"""Divide an ONNX graph over GPUs: which products are split by columns and which by rows, and where ranks add up.

Every rank holds its attention heads and its part of the feed-forward width: Q, K, V and the first feed-forward products
by columns of their weights, what follows them by rows. The results of the latter are summed over the ranks by one node:

    DistCollective(partial) -> total    domain "enginery"; collective_operation "all_reduce", reduce_op "sum",
                                        nb_rank tp, group_size 0 (all ranks), root -1 (none)

TensorRT's ONNX parser reads that operator in any domain. Embeddings, norms and the head are on every rank.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from pipelines.errors import ShardError
from pipelines.onnx_graph import external_data
from pipelines.shard import equivalence
from pipelines.shard.axes import Axes, Axis
from pipelines.stage import StageRequest, StageResult
from serving.contract.profile import Precision
from serving.tasks.base import ONLY
from serving.tasks.table import TASKS

DOMAIN, COLLECTIVE = "enginery", "DistCollective"
# The modules whose weights are divided, as transformers names them in BERT's family and in Llama's.
COLUMNS = re.compile(r"/(query|key|value|[qkv]_proj|gate_proj|up_proj|[qkv]_lin|lin1|intermediate/dense)$")
ROWS = re.compile(r"/(output/dense|o_proj|down_proj|out_lin|lin2)$")


def run(request: StageRequest) -> StageResult:
    """The stage: model.onnx -> rank0.onnx, rank1.onnx, …, whose answers together are those of model.onnx."""
    tp, precision, folder = int(request.params["tp"]), Precision(request.params["precision"]), request.output_dir
    if TASKS[request.params["task"]].towers != (ONLY,):
        raise ShardError(f"tp {tp}: the task {request.params['task']} has several engines; build it with tp 1")
    scratch = folder / "scratch"
    scratch.mkdir()
    try:
        source = external_data.at_hand(request.inputs, "model.onnx", scratch)
        beside = external_data.is_beside_data(source)
        files: list[Path] = []
        for rank in range(tp):
            model = divided(external_data.read(source), source.parent, rank, tp)
            num_collectives = sum(node.op_type == COLLECTIVE for node in model.graph.node)
            files += external_data.write(model, folder / name_of(rank), source.parent, beside=beside)
        size_bytes = [sum(path.stat().st_size for path in files if path.name.startswith(name_of(r))) for r in range(tp)]
        facts: dict[str, Any] = {"num_collectives": num_collectives, "size_bytes": size_bytes}
        if precision in equivalence.MAX_ERROR and not beside:  # larger ones are too much for the memory of one machine
            facts["max_error"] = equivalence.prove(source, [folder / name_of(r) for r in range(tp)], precision, scratch)
    finally:
        shutil.rmtree(scratch)
    return StageResult(outputs={path.name: path for path in files}, facts=facts)


def name_of(rank: int) -> str:
    return f"rank{rank}.onnx"


def divided(model: Any, folder: Path, rank: int, tp: int) -> Any:
    """One rank's graph; the model changes. folder: where heavy tensors lie. Raises ShardError."""
    from onnx import helper

    graph = model.graph
    weights = _Weights(graph, folder, rank, tp)
    axes = Axes(weights)
    nodes: list[Any] = weights.nodes
    num_columns = num_rows = 0
    for node in list(graph.node):
        role = node.name.rsplit("/", 1)[0] if node.op_type == "MatMul" else ""
        if COLUMNS.search(role):
            if axes.of(node.input[0]) is not None:
                raise ShardError(f"{node.name} takes what is divided already: it cannot be split by columns")
            node.input[1] = weights.sliced(node.input[1], 1, node.name)
            axes.set(node.output[0], Axis(place=2, rank=3, size=(weights.dims(node.input[1]) or [0, 0])[1]))
            num_columns += 1
        elif ROWS.search(role) and (taken := axes.of(node.input[0])) is not None:
            if not taken.is_at(2, 3):
                raise ShardError(f"{node.name} does not take (B, T, a rank's part): it cannot be split by rows")
            node.input[1] = weights.sliced(node.input[1], 0, node.name)
            total, partial = node.output[0], f"{node.output[0]}/partial"
            node.output[0] = partial
            nodes.append(node)
            node = helper.make_node(
                COLLECTIVE, [partial], [total], f"{node.name}/all_reduce", domain=DOMAIN,
                collective_operation="all_reduce", reduce_op="sum", nb_rank=tp, group_size=0, root=-1,
            )  # fmt: skip
            num_rows += 1
        else:
            axes.follow(node)
        nodes.append(node)
    left = [value.name for value in graph.output if axes.of(value.name) is not None]
    if not num_rows or left:
        raise ShardError(
            f"tp {tp}: {num_columns} products were split by columns and {num_rows} by rows"
            f"{', and ' + ', '.join(left) + ' is left divided' if left else ''}; this form of layer is not known, "
            "known are those of BERT's family and of Llama's: build it with tp 1"
        )
    del graph.node[:]
    graph.node.extend(nodes)
    _prune(graph)
    model.opset_import.append(helper.make_opsetid(DOMAIN, 1))
    return model


class _Weights:
    """The constants of a graph, and a rank's slices of them: made where they are first asked for."""

    def __init__(self, graph: Any, folder: Path, rank: int, tp: int) -> None:
        self.graph, self.folder, self.rank, self.tp = graph, folder, rank, tp
        self.nodes: list[Any] = []  # the rank's graph so far
        self.made_by = {name: node for node in graph.node for name in node.output}
        self.tensors: dict[str, Any] = {tensor.name: tensor for tensor in graph.initializer}
        constants = [node for node in graph.node if node.op_type == "Constant"]
        self.tensors |= {node.output[0]: a.t for node in constants for a in node.attribute if a.name == "value"}
        self._sliced: dict[tuple[str, int], str] = {}

    def dims(self, name: str) -> list[int] | None:
        """The shape of a constant; None for what is computed from the inputs."""
        if name in self.tensors:
            return list(self.tensors[name].dims)
        node = self.made_by.get(name)
        if node is None or node.op_type not in PASSED_ON:
            return None
        dims = self.dims(node.input[0])
        return [dims[i] for i in _perm(node, len(dims))] if dims is not None else None

    def values(self, name: str) -> Any:
        """A small constant's values; None for what is computed."""
        tensor = self.tensors.get(name)
        return None if tensor is None else external_data.array(tensor, self.folder)

    def add(self, name: str, values: Any) -> str:
        from onnx import numpy_helper

        if name not in self.tensors:
            self.graph.initializer.append(numpy_helper.from_array(np.ascontiguousarray(values), name))
            self.tensors[name] = self.graph.initializer[-1]
        return name

    def sliced(self, name: str, axis: int, what: str) -> str:
        """The name of this rank's part of a constant, by whatever casts and Q/DQ pairs it comes. Raises ShardError."""
        if (name, axis) in self._sliced:
            return self._sliced[name, axis]
        made = f"{name}/rank{self.rank}/axis{axis}"
        if name in self.tensors:
            tensor = self.tensors[name]
            if tensor.dims[axis] % self.tp:
                raise ShardError(f"{what}: {tensor.dims[axis]} do not divide by {self.tp}; use a smaller tp")
            self._slice(tensor, axis, made)
        else:
            node = self.made_by.get(name)
            if node is None or node.op_type not in PASSED_ON:
                raise ShardError(f"{what} has no constant weight: it cannot be divided")
            copy = type(node)()
            copy.CopyFrom(node)
            copy.name, copy.output[0] = f"{node.name}/rank{self.rank}/axis{axis}", made
            dims = self.dims(node.input[0]) or []
            copy.input[0] = self.sliced(node.input[0], _perm(node, len(dims))[axis], what)
            per_channel = {a.name: a.i for a in node.attribute}.get("axis", 1) % max(len(dims), 1) == axis
            for i in range(1, len(node.input)):  # scales and zero points of Q/DQ: one, or one for each channel
                if per_channel and np.prod(self.dims(node.input[i]) or [1]) > 1:
                    copy.input[i] = self.sliced(node.input[i], 0, what)
            self.nodes.append(copy)
        self._sliced[name, axis] = made
        return made

    def _slice(self, tensor: Any, axis: int, name: str) -> None:
        width = tensor.dims[axis] // self.tp
        part = np.take(
            external_data.array(tensor, self.folder), range(self.rank * width, (self.rank + 1) * width), axis
        )
        made = self.graph.initializer.add()
        made.name, made.data_type = name, tensor.data_type
        made.dims.extend(part.shape)
        made.raw_data = np.ascontiguousarray(part).tobytes()
        self.tensors[name] = made


PASSED_ON = ("Identity", "Cast", "Transpose", "QuantizeLinear", "DequantizeLinear")


def _perm(node: Any, rank: int) -> list[int]:
    """Output axis -> input axis."""
    if node.op_type != "Transpose":
        return list(range(rank))
    found = [list(a.ints) for a in node.attribute if a.name == "perm"]
    return found[0] if found else list(reversed(range(rank)))


def _prune(graph: Any) -> None:
    """Drop what nothing takes any more: the whole weights, and what led to them. In place."""
    wanted = {value.name for value in graph.output}
    kept = []
    for node in reversed(graph.node):
        if wanted & set(node.output):
            wanted |= set(_inputs(node))
            kept.append(node)
    tensors = [tensor for tensor in graph.initializer if tensor.name in wanted]
    del graph.node[:], graph.initializer[:]
    graph.node.extend(reversed(kept))
    graph.initializer.extend(tensors)


def _inputs(node: Any) -> Iterator[str]:
    yield from node.input
    for attribute in node.attribute:
        for inner in attribute.g.node:
            yield from _inputs(inner)
