"""Export from PyTorch without copies of the weights: each is written to a file while the graph is made.

torch.onnx.export holds a large model up to six times: modules, folded constants, a message, its bytes, the bytes again,
the parsed graph. Its pass that removes duplicate initializers sees all weights by name before any is copied. Here that
pass writes large weights to a file instead of returning them. The exported graph then has them as inputs, which
`restore` replaces by external initializers. The bytes of the exported file are the same
(tests/pipelines/recipes/exporter/test_torch_weights.py).
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
class SpilledWeights:
    """Weights that were written to a file instead of the graph."""

    folder: Path
    order: list[str] = field(default_factory=list)  # all initializers of the graph, spilled or not
    tensors: dict[str, Any] = field(default_factory=dict)  # name -> an external onnx.TensorProto

    def restore(self, model: Any) -> None:
        """Replace the graph's inputs for spilled weights by initializers. In place.

        Raises ExportError where the graph's names are not those of the spilled weights.
        """
        graph = model.graph
        inputs = {value.name: value for value in graph.input}
        initializers = {tensor.name: tensor for tensor in graph.initializer}
        missing = sorted(self.tensors.keys() - inputs.keys())
        unknown = sorted(initializers.keys() - set(self.order))
        if missing or unknown:
            raise ExportError(
                f"PyTorch's exporter renamed weights on the way ({', '.join([*missing, *unknown][:3])}); "
                "this release of PyTorch is not supported for large models, use the one that Enginery pins"
            )
        initializers |= self.tensors
        in_order = [initializers[name] for name in self.order if name in initializers]
        values = [value for name, value in inputs.items() if name not in self.tensors]
        graph.ClearField("initializer")
        graph.initializer.extend(in_order)
        graph.ClearField("input")
        graph.input.extend(values)


@contextmanager
def spill_weights(folder: Path) -> Iterator[SpilledWeights]:
    """While the context lasts, torch.onnx.export writes large float32 weights to DATA in the folder."""
    import torch
    from onnx import TensorProto

    spilled = SpilledWeights(folder=folder)
    deduplicate = torch._C._jit_pass_onnx_deduplicate_initializers

    def deduplicate_and_spill(graph: Any, params: Any, is_training: bool) -> dict[str, Any]:
        weights = deduplicate(graph, params, is_training)
        small: dict[str, Any] = {}
        spilled.order = [value.debugName() for value in graph.inputs() if value.debugName() in weights]
        with (folder / DATA).open("wb") as file:
            for name in spilled.order:
                weight = weights[name]
                if weight.dtype is not torch.float32 or weight.nbytes < external_data.MIN_EXTERNAL_BYTES:
                    small[name] = weight
                    continue
                tensor = TensorProto(name=name, data_type=TensorProto.FLOAT, dims=list(weight.shape))
                external_data.externalize(tensor, DATA, file.tell(), weight.nbytes)
                spilled.tensors[name] = tensor
                weight.detach().contiguous().numpy().tofile(file)
        return small

    torch._C._jit_pass_onnx_deduplicate_initializers = deduplicate_and_spill
    try:
        yield spilled
    finally:
        torch._C._jit_pass_onnx_deduplicate_initializers = deduplicate
