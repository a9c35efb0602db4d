"""Partition an ONNX graph over GPUs (tensor parallelism): which products are split by columns, which by rows.

Each rank holds some of the attention heads and of the feed-forward width. Q, K, V and the first feed-forward products
are split by columns of their weights, the products after them by rows. One node sums a row split over the ranks:

    DistCollective(partial) -> total    domain "enginery"; collective_operation "all_reduce", reduce_op "sum",
                                        nb_rank tp, group_size 0 (all ranks), root -1 (none)

TensorRT's ONNX parser reads that operator in any domain. Embeddings, norms and the head are on every rank.
What each operator does to a partitioned axis belongs in `axes`, the comparison with the whole graph in `equivalence`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pipelines.errors import ShardError
from pipelines.onnx_graph import external_data
from pipelines.shard import equivalence
from pipelines.shard.axes import Axes, Axis
from pipelines.shard.constants import RankConstants
from pipelines.stage import StageRequest, StageResult, scratch_folder
from serving.contract.profile import Precision
from serving.tasks.base import ONLY
from serving.tasks.table import TASKS

DOMAIN, COLLECTIVE = "enginery", "DistCollective"
# The modules whose weights are partitioned, as transformers names them in BERT's family and in Llama's.
COLUMNS = re.compile(r"/(query|key|value|[qkv]_proj|gate_proj|up_proj|[qkv]_lin|lin1|intermediate/dense)$")
ROWS = re.compile(r"/(output/dense|o_proj|down_proj|out_lin|lin2)$")


def run(request: StageRequest) -> StageResult:
    """The stage: model.onnx -> rank0.onnx, rank1.onnx, …, whose answers together are those of model.onnx."""
    tp, precision, folder = int(request.params["tp"]), Precision(request.params["precision"]), request.output_dir
    if TASKS[request.params["task"]].towers != (ONLY,):
        raise ShardError(f"tp {tp}: the task {request.params['task']} has several engines; build it with tp 1")
    with scratch_folder(request) as scratch:
        source = external_data.stage_input(request.inputs, "model.onnx", scratch)
        external = external_data.has_external_data(source)
        files: list[Path] = []
        for rank in range(tp):
            model = partition(external_data.read(source), source.parent, rank, tp)
            num_collectives = sum(node.op_type == COLLECTIVE for node in model.graph.node)
            files += external_data.write(model, folder / name_of(rank), source.parent, external=external)
        size_bytes = [sum(path.stat().st_size for path in files if path.name.startswith(name_of(r))) for r in range(tp)]
        facts: dict[str, Any] = {"num_collectives": num_collectives, "size_bytes": size_bytes}
        if precision in equivalence.MAX_ERROR and not external:  # one machine cannot hold all ranks of a larger graph
            facts["max_error"] = equivalence.prove(source, [folder / name_of(r) for r in range(tp)], precision, scratch)
    return StageResult(outputs={path.name: path for path in files}, facts=facts)


def name_of(rank: int) -> str:
    return f"rank{rank}.onnx"


def partition(model: Any, folder: Path, rank: int, tp: int) -> Any:
    """One rank's graph; the model changes. folder: of its external data. Raises ShardError."""
    from onnx import helper

    graph = model.graph
    constants = RankConstants(graph, folder, rank, tp)
    axes = Axes(constants)
    nodes: list[Any] = constants.nodes
    num_columns = num_rows = 0
    for node in list(graph.node):
        role = node.name.rsplit("/", 1)[0] if node.op_type == "MatMul" else ""
        if COLUMNS.search(role):
            if axes.of(node.input[0]) is not None:
                raise ShardError(f"{node.name} takes a partitioned tensor: it cannot be split by columns")
            node.input[1] = constants.sliced(node.input[1], 1, node.name)
            axes.set(node.output[0], Axis(dim=2, rank=3, size=(constants.dims(node.input[1]) or [0, 0])[1]))
            num_columns += 1
        elif ROWS.search(role) and (axis := axes.of(node.input[0])) is not None:
            if not axis.is_at(2, 3):
                raise ShardError(f"{node.name} does not take (B, T, a rank's part): it cannot be split by rows")
            node.input[1] = constants.sliced(node.input[1], 0, node.name)
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
            f"{', and ' + ', '.join(left) + ' is left partitioned' if left else ''}; this form of layer is not known, "
            "known are those of BERT's family and of Llama's: build it with tp 1"
        )
    del graph.node[:]
    graph.node.extend(nodes)
    _prune(graph)
    model.opset_import.append(helper.make_opsetid(DOMAIN, 1))
    return model


def _prune(graph: Any) -> None:
    """Drop the nodes and constants that no output depends on any more, such as the whole weights. In place."""
    used = {value.name for value in graph.output}
    nodes = []
    for node in reversed(graph.node):
        if used & set(node.output):
            used |= set(_inputs(node))
            nodes.append(node)
    tensors = [tensor for tensor in graph.initializer if tensor.name in used]
    del graph.node[:], graph.initializer[:]
    graph.node.extend(reversed(nodes))
    graph.initializer.extend(tensors)


def _inputs(node: Any) -> Iterator[str]:
    yield from node.input
    for attribute in node.attribute:
        for inner in attribute.g.node:
            yield from _inputs(inner)
