"""Append to a Transformer body's graph what follows it: pooling, then a task's head."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from pipelines.onnx_graph.edit import add_constant

AXIS_1 = "head/axis_1"


def add_node(graph: Any, op: str, inputs: Sequence[str], output: str, **attributes: Any) -> str:
    from onnx import helper

    graph.node.append(helper.make_node(op, inputs, [output], name=f"head/{output}", **attributes))
    return output


def append_pooling(graph: Any, pooling: str, output: str, last_position: str = "head/last_position") -> str:
    """last_hidden_state (B, T, H), attention_mask (B, T) -> output (B, H). pooling: "mean", "cls" or "lasttoken".

    last_position: a name in the graph; embedding and reranking graphs have different ones in their published bytes.
    """
    from onnx import TensorProto

    hidden, one = graph.output[0].name, add_constant(graph, AXIS_1, np.array([1], np.int64))
    if pooling == "cls":
        first = add_constant(graph, "head/first", np.array(0, np.int64))
        return add_node(graph, "Gather", [hidden, first], output, axis=1)
    if pooling == "lasttoken":
        # (B, 1) positions into (B, T, H): texts are padded on the right.
        count = add_node(graph, "ReduceSum", ["attention_mask", one], "head/num_tokens", keepdims=1)
        position = add_node(graph, "Sub", [count, one], last_position)
        return add_node(graph, "GatherND", [hidden, position], output, batch_dims=1)
    mask = add_node(graph, "Cast", ["attention_mask"], "head/mask", to=TensorProto.FLOAT)
    axis_2 = add_constant(graph, "head/axis_2", np.array([2], np.int64))
    mask_3d = add_node(graph, "Unsqueeze", [mask, axis_2], "head/mask_3d")
    kept = add_node(graph, "Mul", [hidden, mask_3d], "head/kept")
    total = add_node(graph, "ReduceSum", [kept, one], "head/sum", keepdims=0)
    count = add_node(graph, "ReduceSum", [mask, one], "head/num_tokens", keepdims=1)
    return add_node(graph, "Div", [total, count], output)


def replace_output(graph: Any, name: str, dimension: int) -> None:
    """Give the graph one output, float32 (B, dimension)."""
    from onnx import TensorProto, helper

    del graph.output[:]
    graph.output.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, ["B", dimension]))
