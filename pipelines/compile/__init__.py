"""Compile a typed ONNX into an engine: one module per compiler, chosen from one table.

What the typed ONNX holds belongs in `quantize`, how an engine is run in `serving/backends`.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec

from pipelines.compile import onnxruntime, openvino, tensorrt, tensorrt_rtx
from pipelines.compile.base import CompileOrder, Compiler
from pipelines.errors import CompileError
from pipelines.onnx_graph import external_data
from pipelines.stage import StageRequest, StageResult, scratch_folder
from serving.contract.profile import Precision, ShapeRange
from serving.tasks.base import ONLY, file_stem, suffixed
from serving.tasks.table import TASKS

# A SKU's compiler -> its module
COMPILERS: Mapping[str, Compiler] = {
    "tensorrt-rtx": tensorrt_rtx,
    "tensorrt": tensorrt,
    "openvino": openvino,
    "onnx": onnxruntime,
}


def run(request: StageRequest) -> StageResult:
    """The stage: model.onnx -> "engine", for each tower; the file's name tells its kind."""
    params = request.params
    compiler = COMPILERS.get(params["compiler"])
    if compiler is None:
        raise CompileError(f"there is no compiler '{params['compiler']}'; one of {', '.join(COMPILERS)} is meant")
    outputs: dict[str, Path] = {}
    facts: dict[str, Any] = {}
    with scratch_folder(request) as scratch:
        for tower in TASKS[params["task"]].towers:
            started = time.monotonic()
            source = external_data.stage_input(request.inputs, suffixed("model.onnx", tower), scratch)
            engine = compiler.compile_engine(_order(source, params))
            path = request.output_dir / f"{file_stem(tower)}{Path(engine.file_name).suffix}"
            path.write_bytes(engine.data)
            outputs[suffixed("engine", tower)] = path
            seconds = round(time.monotonic() - started, 2)
            facts_of_tower = {**engine.facts, "compile_s": seconds, "size_bytes": len(engine.data)}
            facts |= {key if tower == ONLY else f"{tower}.{key}": value for key, value in facts_of_tower.items()}
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
