"""Shard equivalence: run the graphs of all ranks on this CPU and compare their answers with the whole graph's.

Each rank runs in a process of its own. ONNX Runtime has no collectives on CPUs, so a rank's graph is cut at its
collectives; between the pieces the processes sum over the ranks (torch.distributed, gloo).
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipelines.errors import ShardError
from serving.contract.profile import Precision

Feeds = Mapping[str, NDArray[Any]]
# As a share of an answer's largest number: the ranks sum in another order. ONNX Runtime runs no bf16 or fp8 on a CPU.
MAX_ERROR = {Precision.FP32: 1e-5, Precision.FP16: 5e-3}
TIMEOUT_S = 600


def prove(source: Path, parts: Sequence[Path], precision: Precision, scratch: Path) -> float:
    """The largest difference of the ranks' answers from the whole graph's, as a share of its largest number.

    Raises ShardError where the order of sums does not explain it, or where two ranks disagree.
    """
    import onnxruntime

    feeds = batch(source)
    session = onnxruntime.InferenceSession(str(source), providers=["CPUExecutionProvider"])
    names = [value.name for value in session.get_outputs()]
    expected = dict(zip(names, session.run(names, dict(feeds)), strict=True))
    by_rank = answers(parts, feeds, scratch)
    errors = [
        float(np.abs(answer[name] - expected[name]).max() / np.abs(expected[name]).max())
        for answer in by_rank
        for name in names
    ]
    limit = MAX_ERROR[precision]
    if not max(errors) <= limit:
        raise ShardError(
            f"the ranks' answers differ by {max(errors):.1e} of the largest number, {limit:.0e} is allowed"
        )
    if any(not np.array_equal(answer[name], by_rank[0][name]) for answer in by_rank for name in names):
        raise ShardError("the ranks do not agree with each other: not all sums go to all of them")
    return max(errors)


def batch(source: Path) -> Feeds:
    """Two texts of random tokens, the second one padded."""
    import onnx

    graph = onnx.load(source, load_external_data=False).graph
    rows = {tensor.name: tensor.dims[0] for tensor in graph.initializer if tensor.dims}
    tables = [
        rows[n.input[0]]
        for n in graph.node
        if n.op_type == "Gather" and n.input[1] == "input_ids" and n.input[0] in rows
    ]
    ids = np.random.default_rng(0).integers(1, min(tables, default=2), (2, 8))
    mask = np.array([[1] * 8, [1] * 5 + [0] * 3], np.int64)
    feeds = {"input_ids": ids, "attention_mask": mask, "token_type_ids": np.zeros_like(ids)}
    return {value.name: feeds[value.name] for value in graph.input}


def answers(parts: Sequence[Path], feeds: Feeds, scratch: Path) -> list[dict[str, NDArray[Any]]]:
    """Each rank's answers, from processes that run at the same time. Raises ShardError."""
    np.savez(scratch / "feeds.npz", **dict(feeds))  # type: ignore[arg-type]
    processes = []
    for rank, path in enumerate(parts):
        request = {"rank": rank, "num_ranks": len(parts), "path": str(path), "scratch": str(scratch)}
        processes.append(
            subprocess.Popen(
                [sys.executable, "-m", "pipelines.shard.equivalence", json.dumps(request)],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                env={**os.environ, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"},  # they never leave this host
            )
        )
    try:
        logs = [process.communicate(timeout=TIMEOUT_S)[0] for process in processes]
    finally:
        for process in processes:
            process.kill()
    failures = [f"rank {i}:\n{logs[i][-2000:]}" for i, process in enumerate(processes) if process.returncode]
    if failures:
        raise ShardError("\n".join(["the ranks could not be run on this CPU:", *failures]))
    return [dict(np.load(scratch / f"answer{rank}.npz")) for rank in range(len(parts))]


def pieces(model: Any) -> list[tuple[Any, str | None]]:
    """A rank's graph cut at its collectives: each piece's model, and the sum that follows it; None after the last."""
    from onnx import helper

    graph = model.graph
    collectives = [node for node in graph.node if node.op_type == "DistCollective"]
    types = _types(model)
    sums = {node.output[0] for node in collectives}
    producers = {name: node for node in graph.node for name in node.output}
    graph_inputs = {value.name: value for value in graph.input}
    tensors = {tensor.name: tensor for tensor in graph.initializer}

    def piece(outputs: Sequence[Any]) -> Any:
        pending, members, inputs, seen = [value.name for value in outputs], set[str](), dict[str, Any](), set[str]()
        while pending:
            name = pending.pop()
            if name in seen:
                continue
            seen.add(name)
            if name in sums:
                inputs[name] = helper.make_tensor_value_info(name, types[name], None)
            elif name in graph_inputs:
                inputs[name] = graph_inputs[name]
            elif name in producers:
                members.add(producers[name].output[0])
                pending += [source for source in producers[name].input if source]
        nodes = [node for node in graph.node if node.output[0] in members]
        used = {name for node in nodes for name in node.input}
        weights = [tensor for name, tensor in tensors.items() if name in used]
        part = helper.make_graph(nodes, "piece", list(inputs.values()), list(outputs), weights)
        return helper.make_model(part, opset_imports=model.opset_import, ir_version=model.ir_version)

    parts: list[tuple[Any, str | None]] = []
    for node in collectives:
        partial = helper.make_tensor_value_info(node.input[0], types[node.output[0]], None)
        parts.append((piece([partial]), node.output[0]))
    parts.append((piece(list(graph.output)), None))
    return parts


def _types(model: Any) -> dict[str, int]:
    """The element type of every sum."""
    import onnx

    plain = onnx.ModelProto()
    plain.CopyFrom(model)
    sums = []
    for node in plain.graph.node:
        if node.op_type == "DistCollective":
            sums.append(node.output[0])
            node.op_type, node.domain = "Identity", ""
            del node.attribute[:]
    inferred = onnx.shape_inference.infer_shapes(plain)
    types = {value.name: value.type.tensor_type.elem_type for value in inferred.graph.value_info}
    return {name: types[name] for name in sums}


def main(rank: int, num_ranks: int, path: str, scratch: str) -> None:
    """One rank: run its pieces, with an all-reduce after each."""
    import onnx
    import onnxruntime
    import torch
    import torch.distributed as dist

    dist.init_process_group("gloo", init_method=f"file://{scratch}/meeting", rank=rank, world_size=num_ranks)
    values: dict[str, Any] = dict(np.load(f"{scratch}/feeds.npz"))
    for model, total in pieces(onnx.load(path)):
        session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
        names = [value.name for value in session.get_outputs()]
        outputs = session.run(names, {value.name: values[value.name] for value in session.get_inputs()})
        if total is None:
            np.savez(f"{scratch}/answer{rank}.npz", **dict(zip(names, outputs, strict=True)))
            break
        (partial,) = outputs
        summed = torch.from_numpy(partial)
        dist.all_reduce(summed)
        values[total] = summed.numpy()
    dist.destroy_process_group()


if __name__ == "__main__":
    main(**json.loads(sys.argv[1]))
