"""Export from PyTorch without further copies of the weights: they go to a file while the graph is made, one at a time.

torch.onnx.export holds a large model up to six times: as it is, with its constants folded, as a message, as bytes, as
bytes again and parsed. The one place where it has all weights by name, and has copied none of them yet, is the pass
that removes duplicates; what is taken away there comes out as inputs of the graph, and is put back as references. The
bytes of the exported file are the same (tests/pipelines/recipes/test_torch_weights.py).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pipelines.errors import ExportError
from pipelines.onnx_graph import external_data

DATA = "weights.data"


@dataclass(kw_only=True)
class Aside:
    """Weights that were written to a file instead of the graph."""

    folder: Path
    order: list[str] = field(default_factory=list)  # of everything that the graph was to hold
    tensors: dict[str, Any] = field(default_factory=dict)  # name -> an onnx.TensorProto that lies in the file

    def put_back(self, model: Any) -> None:
        """Have the exported graph refer to them. In place. Raises ExportError where it does not ask for all of them."""
        graph = model.graph
        inputs = {value.name: value for value in graph.input}
        inside = {tensor.name: tensor for tensor in graph.initializer}
        missing = sorted(self.tensors.keys() - inputs.keys())
        strangers = sorted(inside.keys() - set(self.order))
        if missing or strangers:
            raise ExportError(
                f"PyTorch's exporter renamed weights on the way ({', '.join([*missing, *strangers][:3])}); "
                "this release of PyTorch is not supported for large models, use the one that Enginery pins"
            )
        named = {**inside, **self.tensors}
        initializers = [named[name] for name in self.order if name in named]
        values = [value for name, value in inputs.items() if name not in self.tensors]
        graph.ClearField("initializer")
        graph.initializer.extend(initializers)
        graph.ClearField("input")
        graph.input.extend(values)


@contextmanager
def set_aside(folder: Path) -> Iterator[Aside]:
    """While the context lasts, torch.onnx.export writes heavy float32 weights to DATA in the folder."""
    import torch
    from onnx import TensorProto

    aside = Aside(folder=folder)
    deduplicate = torch._C._jit_pass_onnx_deduplicate_initializers

    def without_weights(graph: Any, params: Any, is_training: bool) -> dict[str, Any]:
        kept: dict[str, Any] = {}
        found = deduplicate(graph, params, is_training)
        aside.order = [value.debugName() for value in graph.inputs() if value.debugName() in found]
        with (folder / DATA).open("wb") as file:
            for name in aside.order:
                weight = found[name]
                if weight.dtype is not torch.float32 or weight.nbytes < external_data.HEAVY_BYTES:
                    kept[name] = weight
                    continue
                tensor = TensorProto(name=name, data_type=TensorProto.FLOAT, dims=list(weight.shape))
                external_data.refer(tensor, DATA, file.tell(), weight.nbytes)
                aside.tensors[name] = tensor
                weight.detach().contiguous().numpy().tofile(file)
        return kept

    torch._C._jit_pass_onnx_deduplicate_initializers = without_weights
    try:
        yield aside
    finally:
        torch._C._jit_pass_onnx_deduplicate_initializers = deduplicate
