"""Turn a Transformers folder into fp32 ONNX with Optimum, and read what any exporter wrote, however large it is."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pipelines import external_data
from pipelines.errors import ExportError

OPSET = 20
# protobuf ends at 2 GiB, and so does one file; what is larger keeps its weights beside it.
MAX_MODEL_BYTES = 2**31 - 2**20


def optimum_onnx(folder: Path, optimum_task: str, scratch: Path) -> Any:
    """A Transformers folder -> `onnx.ModelProto` in float32, as `load` reads it. Raises ExportError.

    optimum_task: what Optimum calls the graph, "feature-extraction".
    """
    from optimum.exporters.onnx import main_export

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
            local_files_only=True,
            trust_remote_code=False,
        )
    except Exception as error:  # exporter, transformers and torch raise whatever they like
        raise ExportError(f"{folder.name}: Optimum could not export it: {type(error).__name__}: {error}") from error
    return load(scratch / "model.onnx", scratch)


def load(path: Path, scratch: Path) -> Any:
    """What an exporter wrote into scratch or below it -> `onnx.ModelProto`.

    A large one is light, its references relative to scratch; others have their weights inside.
    """
    model = external_data.read(path)
    if not external_data.is_light(model) and external_data.size_of(model) > external_data.LARGE_BYTES:
        light, _ = external_data.write(model, path.with_name("light.onnx"), scratch, beside=True)
        del model  # its memory is given back as a whole, not tensor by tensor
        model = external_data.read(light)
    for constant in (a.t for node in model.graph.node for a in node.attribute if a.HasField("t")):
        if external_data.is_external(constant):
            _place(constant, path.parent)
            external_data.embed(constant, external_data.stored(constant, path.parent))
    external = [tensor for tensor in model.graph.initializer if external_data.is_external(tensor)]
    for tensor in external:
        _place(tensor, path.parent)
    is_small = external_data.size_of(model) <= external_data.LARGE_BYTES
    for tensor in external:
        location, offset, length = external_data.reference(tensor)
        if is_small or length < external_data.HEAVY_BYTES:
            external_data.embed(tensor, external_data.stored(tensor, path.parent))
        else:
            external_data.refer(tensor, (path.parent / location).relative_to(scratch).as_posix(), offset, length)
    return model


def _place(tensor: Any, folder: Path) -> None:
    """Write a reference out in full: an exporter that gives each tensor a file tells neither offset nor length."""
    found = {entry.key: entry.value for entry in tensor.external_data}
    offset = int(found.get("offset", 0))
    length = int(found.get("length", (folder / found["location"]).stat().st_size - offset))
    external_data.refer(tensor, found["location"], offset, length)
