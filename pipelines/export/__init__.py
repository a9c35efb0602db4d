"""Export a model to ONNX in fp32, with its answer computed inside the graph, and record what the original answers.

What differs per task belongs in `recipes`; where models come from belongs here.
"""

from __future__ import annotations

import gc
import json
import logging
import os
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pipelines.errors import ExportError
from pipelines.export import sources
from pipelines.onnx_graph import external_data
from pipelines.onnx_graph.edit import scrub
from pipelines.recipes.exporter import to_onnx
from pipelines.recipes.exporter.to_onnx import OPSET
from pipelines.recipes.golden import read_tokenizer
from pipelines.stage import StageRequest, StageResult, scratch_folder
from pipelines.tasks.base import Answers, Recipe, resolve
from pipelines.tasks.table import TASKS
from serving.tasks.base import suffixed

IR_VERSION = 10  # what every runtime here reads


def run(request: StageRequest) -> StageResult:
    """The stage. The model is the folder among the inputs ("model"), or else what `params["source"]` names."""
    params = request.params
    if params["task"] not in TASKS:
        raise ExportError(f"task '{params['task']}' has no recipe; there is one for {', '.join(sorted(TASKS))}")
    recipe: Recipe = resolve(TASKS[params["task"]].recipe)
    folder = request.inputs.get("model") or sources.resolve(
        params["source"], Path(params.get("source_base", ".")), wanted=params.get("source_digest")
    )
    texts = json.loads(request.inputs["texts.json"].read_bytes())
    started = time.monotonic()
    with _quiet_and_offline(), scratch_folder(request) as scratch:
        models = recipe.to_onnx(folder, scratch)
        traced_s = time.monotonic() - started
        gc.collect()  # modules refer to themselves; the reference loads the model a second time
        for model in models.values():
            canonicalize(model)
        tokenizer = read_tokenizer(folder)
        answers = recipe.answers(models, folder, params, texts, tokenizer)
        num_nodes = sum(len(model.graph.node) for model in models.values())
        paths = _write_files(answers, tokenizer, request.output_dir)
        for tower, model in models.items():
            paths += _write(model, request.output_dir / suffixed("model.onnx", tower), scratch)
    return StageResult(
        outputs={path.name: path for path in paths},
        facts={**answers.facts, "num_nodes": num_nodes, "opset": OPSET, "to_onnx_s": round(traced_s, 1)},
    )


def canonicalize(model: Any) -> None:
    """Name the axes B and T, and drop everything that depends on where or by what the file was made. In place."""
    import onnx

    graph = model.graph
    names = {"batch_size": "B", "sequence_length": "T"}
    for value in (*graph.input, *graph.output):
        for dim in value.type.tensor_type.shape.dim:
            if dim.dim_param:
                dim.dim_param = names.get(dim.dim_param, dim.dim_param)
    model.ir_version = IR_VERSION
    scrub(model)
    if not external_data.is_externalized(model):  # an externalized graph is checked before it is written
        onnx.checker.check_model(model)


def _write_files(answers: Answers, tokenizer: bytes, folder: Path) -> list[Path]:
    contents = {
        "tokenizer.json": tokenizer,
        "task.json": answers.spec.dump(),
        "golden.json": answers.golden,
        "proof.json": answers.proof,
    }
    for name, data in contents.items():
        (folder / name).write_bytes(data)
    return [folder / name for name in contents]


def _write(model: Any, path: Path, scratch: Path) -> list[Path]:
    import onnx

    if external_data.is_externalized(model):  # as a file: locations are relative to one
        externalized = scratch / f"checked-{path.name}"
        externalized.write_bytes(model.SerializeToString())
        onnx.checker.check_model(externalized)
    external = external_data.size_of(model) > to_onnx.MAX_MODEL_BYTES
    return external_data.write(model, path, scratch, external=external)


@contextmanager
def _quiet_and_offline() -> Iterator[None]:
    """Everything is local by now: no library may ask a hub for more, nor print what only its authors can use."""
    for name in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "HF_HUB_DISABLE_TELEMETRY"):
        os.environ.setdefault(name, "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
