"""Compile a typed ONNX into an engine: one module per compiler, chosen from one table."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import msgspec

from pipelines.compile import onnxruntime, openvino, tensorrt
from pipelines.compile.base import CompileOrder, Engine
from pipelines.errors import CompileError
from pipelines.onnx_graph import external_data
from pipelines.stage import StageRequest, StageResult
from serving.contract.profile import Precision, ShapeRange
from serving.tasks.base import ONLY, file_stem, suffixed
from serving.tasks.table import TASKS

# The compiler of a SKU -> the function that makes its engine.
COMPILERS: Mapping[str, Callable[[CompileOrder], Engine]] = {
    "tensorrt-rtx": tensorrt.compile_with_rtx,
    "tensorrt": tensorrt.compile_with_tensorrt,
    "openvino": openvino.compile_engine,
    "onnx": onnxruntime.compile_engine,
}


def run(request: StageRequest) -> StageResult:
    """The stage: model.onnx -> "engine", for each tower; the file's name tells its kind."""
    params = request.params
    compiler = COMPILERS.get(params["compiler"])
    if compiler is None:
        raise CompileError(f"there is no compiler '{params['compiler']}'; one of {', '.join(COMPILERS)} is meant")
    outputs: dict[str, Path] = {}
    facts: dict[str, Any] = {}
    for tower in TASKS[params["task"]].towers:
        started = time.monotonic()
        with tempfile.TemporaryDirectory(dir=request.output_dir) as scratch:
            source = external_data.at_hand(request.inputs, suffixed("model.onnx", tower), Path(scratch))
            engine = compiler(_order(source, params))
        path = request.output_dir / f"{file_stem(tower)}{Path(engine.file_name).suffix}"
        path.write_bytes(engine.data)
        outputs[suffixed("engine", tower)] = path
        found = {
            **engine.facts,
            "compile_s": round(time.monotonic() - started, 2),
            "size_bytes": len(engine.data),
        }
        facts |= {key if tower == ONLY else f"{tower}.{key}": value for key, value in found.items()}
    return StageResult(outputs=outputs, facts=facts)


def _order(source: Path, params: Mapping[str, Any]) -> CompileOrder:
    if params.get("tp", 1) != 1:
        raise CompileError(f"tp {params['tp']}: no engine is made of several GPUs' graphs yet (stage shard); use tp 1")
    return CompileOrder(
        source=source,
        precision=Precision(params["precision"]),
        shapes=msgspec.convert(params["shapes"], ShapeRange),
        compute_capability=params.get("compute_capability"),
        cpu_isa=params.get("cpu_isa"),
    )
