"""Turn a Transformers folder into fp32 ONNX with Optimum: the one module that calls the exporter."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pipelines.errors import ExportError

OPSET = 20
# protobuf ends at 2 GiB, and so does one file without external data.
MAX_MODEL_BYTES = 2**31 - 2**20


def optimum_onnx(folder: Path, optimum_task: str, scratch: Path) -> Any:
    """A Transformers folder -> `onnx.ModelProto` in float32, its weights inside. Raises ExportError.

    optimum_task: what Optimum calls the graph, "feature-extraction".
    """
    import onnx
    from optimum.exporters.onnx import main_export

    check_size(folder)
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
    return onnx.load(scratch / "model.onnx")


def check_size(folder: Path) -> None:
    """Refuse weights that do not fit one ONNX file. Raises ExportError."""
    size = sum(path.stat().st_size for path in folder.glob("*.safetensors"))
    if size > MAX_MODEL_BYTES:
        raise ExportError(
            f"{folder.name}: {size / 2**30:.1f} GiB of weights; an ONNX file without external data ends at 2 GiB, "
            "and larger models are not exported yet"
        )
