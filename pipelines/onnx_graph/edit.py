"""Edits of an ONNX graph that several passes make."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike


def attribute(node: Any, name: str, default: Any) -> Any:
    """The value of a node's attribute, or the operator's default."""
    from onnx import helper

    return next((helper.get_attribute_value(each) for each in node.attribute if each.name == name), default)


def add_constant(graph: Any, name: str, values: ArrayLike) -> str:
    """Append an initializer; returns its name, to be used as a node's input."""
    from onnx import numpy_helper

    graph.initializer.append(numpy_helper.from_array(np.asarray(values), name))
    return name


def replace_nodes(graph: Any, nodes: Sequence[Any]) -> None:
    """Give a graph these nodes, and drop the initializers that none of them takes. In place."""
    used = {name for node in nodes for name in node.input} | {value.name for value in graph.output}
    tensors = [tensor for tensor in graph.initializer if tensor.name in used]
    for field, values in (("node", nodes), ("initializer", tensors)):
        copies = [type(value).FromString(value.SerializeToString()) for value in values]
        graph.ClearField(field)
        getattr(graph, field).extend(copies)


def scrub(model: Any) -> None:
    """Drop everything that depends on where or by what a graph was made: names, paths, inferred shapes. In place."""
    model.producer_name, model.producer_version, model.doc_string = "enginery", "", ""
    model.graph.name, model.graph.doc_string = "enginery", ""
    del model.metadata_props[:]
    del model.graph.value_info[:]
    for node in model.graph.node:
        node.doc_string = ""
        del node.metadata_props[:]
