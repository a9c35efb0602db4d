"""Turn a Transformers folder into fp32 ONNX with Optimum or PyTorch, however large it is."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pipelines.errors import ExportError
from pipelines.onnx_graph import external_data
from pipelines.recipes.exporter.torch_weights import SpilledWeights, spill_weights

OPSET = 20
# protobuf ends at 2 GiB, and so does one file; a larger model has external data.
MAX_MODEL_BYTES = 2**31 - 2**20


def optimum_onnx(folder: Path, optimum_task: str, scratch: Path) -> Any:
    """A Transformers folder -> `onnx.ModelProto` in float32, externalized if it is large. Raises ExportError.

    optimum_task: what Optimum calls the graph, "feature-extraction".
    scratch: an empty folder, which an externalized graph's locations are relative to.
    """
    from optimum.exporters.onnx import main_export

    is_large = sum(path.stat().st_size for path in folder.glob("*.safetensors")) > external_data.LARGE_BYTES
    path = scratch / "model.onnx"
    with _spilling(path, is_large) as spilled:
        try:
            main_export(
                str(folder),
                output=scratch,
                task=optimum_task,
                library_name="transformers",
                opset=OPSET,
                device="cpu",
                dtype="fp32",
                do_validation=False,  # the gate compares with the reference, on more texts than one
                no_post_process=is_large,  # it merges tied weights, which it would look for in the graph
                local_files_only=True,
                trust_remote_code=False,
            )
        except Exception as error:  # exporter, transformers and torch raise whatever they like
            raise ExportError(f"{folder.name}: Optimum could not export it: {type(error).__name__}: {error}") from error
    return load(path, scratch, spilled)


def torch_onnx(
    module: Any,
    inputs: Mapping[str, Any],
    output: str,
    dynamic_axes: Mapping[str, Mapping[int, str]],
    path: Path,
    scratch: Path,
) -> Any:
    """A PyTorch module -> `onnx.ModelProto`, as optimum_onnx gives it. Raises ExportError."""
    import torch

    weights = (*module.parameters(), *module.buffers())
    with _spilling(path, sum(weight.nbytes for weight in weights) > external_data.LARGE_BYTES) as spilled:
        try:
            torch.onnx.export(
                module,
                tuple(inputs.values()),
                str(path),
                input_names=list(inputs),
                output_names=[output],
                dynamic_axes={name: dict(axes) for name, axes in dynamic_axes.items()},
                opset_version=OPSET,
                dynamo=False,
            )
        except Exception as error:  # torch raises whatever it likes
            raise ExportError(f"PyTorch could not export it: {type(error).__name__}: {error}") from error
    return load(path, scratch, spilled)


def load(path: Path, scratch: Path, spilled: SpilledWeights | None = None) -> Any:
    """A file that an exporter wrote into scratch -> `onnx.ModelProto`, externalized if it is large.

    scratch: what an externalized graph's locations are relative to.
    """
    model = external_data.read(path)
    if spilled is not None:
        spilled.restore(model)
    for constant in (a.t for node in model.graph.node for a in node.attribute if a.HasField("t")):
        if external_data.is_external(constant):
            _complete_location(constant, path.parent)
            external_data.inline(constant, external_data.tensor_bytes(constant, path.parent))
    external = [tensor for tensor in model.graph.initializer if external_data.is_external(tensor)]
    for tensor in external:
        _complete_location(tensor, path.parent)
    is_small = external_data.size_of(model) <= external_data.LARGE_BYTES
    for tensor in external:
        location, offset, length = external_data.location_of(tensor)
        if is_small or length < external_data.MIN_EXTERNAL_BYTES:
            external_data.inline(tensor, external_data.tensor_bytes(tensor, path.parent))
        else:
            external_data.externalize(tensor, (path.parent / location).relative_to(scratch).as_posix(), offset, length)
    return model


@contextmanager
def _spilling(path: Path, is_large: bool) -> Iterator[SpilledWeights | None]:
    if not is_large:
        yield None
        return
    with spill_weights(path.parent) as spilled:
        yield spilled


def _complete_location(tensor: Any, folder: Path) -> None:
    """Add the offset and the length that an exporter leaves out when it gives each tensor a file. In place."""
    entries = {entry.key: entry.value for entry in tensor.external_data}
    offset = int(entries.get("offset", 0))
    length = int(entries.get("length", (folder / entries["location"]).stat().st_size - offset))
    external_data.externalize(tensor, entries["location"], offset, length)
