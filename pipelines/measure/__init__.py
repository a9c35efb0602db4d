"""Measure a row's engines with the code that serves them: accuracy, realised precision, speed.

What the figures must reach belongs in `gate`, the labelled sets in `datasets`.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from pipelines.datasets import retrieval
from pipelines.errors import GateError
from pipelines.measure import speed
from pipelines.measure.base import LabelledSet, Measure, Runners, Score
from pipelines.measure.runner import is_reference, open_runner, realized, rounded
from pipelines.onnx_graph import external_data
from pipelines.stage import StageRequest, StageResult, scratch_folder
from pipelines.tasks.base import resolve
from pipelines.tasks.table import TASKS
from serving.contract.profile import Precision
from serving.tasks.base import Tower, suffixed
from serving.tasks.table import TASKS as SERVED

SCHEMA_VERSION = 1  # of metrics.json


def run(request: StageRequest) -> StageResult:
    """The stage: metrics.json of a row's engines; or, to evaluate the "reference", reference.json of the fp32 ONNX.

    Rows of a model share one reference.json as input; without it each runs the fp32 ONNX again.
    """
    params, inputs = request.params, request.inputs
    name = params["task"]
    if name not in TASKS:
        raise GateError(f"task '{name}' cannot be measured; {', '.join(TASKS)} can")
    task, measure = SERVED[name], resolve(TASKS[name].measure)
    spec = task.spec.load(inputs["task.json"].read_bytes())
    encoder = task.encoder(inputs["tokenizer.json"].read_bytes(), spec)
    labelled = measure.labelled(encoder, params, inputs)
    with scratch_folder(request) as scratch:
        if params["evaluated"] == "reference":
            values = _reference(spec.towers, labelled, inputs, scratch)
            record = {**labelled.identity, labelled.figure: [rounded(value) for value in values]}
            path = request.output_dir / "reference.json"
            path.write_bytes(json.dumps(record, sort_keys=True).encode())
            return StageResult(outputs={path.name: path}, facts={labelled.figure: rounded(values.mean())})
        metrics, facts = _measure(request, measure, spec, encoder, labelled, scratch)
    path = request.output_dir / "metrics.json"
    path.write_bytes(json.dumps(metrics, sort_keys=True, allow_nan=False).encode())
    return StageResult(outputs={path.name: path}, facts=facts)


def _measure(
    request: StageRequest, measure: Measure, spec: Any, encoder: Any, labelled: LabelledSet, scratch: Path
) -> tuple[dict[str, Any], dict[str, Any]]:
    """metrics.json, and what a person sees of it."""
    params, inputs, towers = request.params, request.inputs, {tower.name: tower for tower in spec.towers}
    precision = Precision(params["precision"])
    engines = {name: external_data.stage_input(inputs, suffixed("engine", name), scratch) for name in towers}
    started = time.monotonic()
    opened = {name: open_runner(engines[name], precision, params, tower, scratch) for name, tower in towers.items()}
    runners = {name: runner for name, (runner, _) in opened.items()}
    recorded = SERVED[spec.task].recorded(inputs["golden.json"].read_bytes(), encoder)
    items = {each.tower: each.items for each in recorded}
    score = labelled.score(runners)
    shares = [
        realized(runner.backend, engines[name], inputs.get(suffixed("typed.onnx", name)))
        for name, runner in runners.items()
    ]
    metrics: dict[str, Any] = {
        "schema_version": SCHEMA_VERSION,
        "task": spec.task,
        "precision": str(precision),
        "evaluated": params["evaluated"],
        "judged_with": next(judged_with for _, judged_with in opened.values()),
        "size_bytes": sum(external_data.size_bytes(inputs, suffixed("engine", name)) for name in towers),
        **measure.golden({name: runner.outputs(items[name]) for name, runner in runners.items()}, recorded),
        "batch_invariance": measure.invariance(runners, items),
        labelled.section: _against_reference(score, labelled, spec.towers, inputs, scratch),
        **score.metrics,
        # Of the tower that kept less to the precision.
        "realized_precision": min(shares, key=lambda share: share.get(str(precision), 0.0)),
    }
    _close(runners)
    accuracy_s = time.monotonic() - started
    if params.get("speed"):
        loads = measure.loads(spec, items)
        by_tower = {
            name: speed.measure(
                engines[name], precision, loads[name], params, tower, baseline=inputs.get(suffixed("baseline", name))
            )
            for name, tower in towers.items()
        }
        metrics["speed"] = speed.of_towers(by_tower)
    facts = {fact: metrics[section][figure] for fact, (section, figure) in measure.facts.items()}
    return metrics, {**facts, "judged_with": metrics["judged_with"], "accuracy_s": round(accuracy_s, 1)}


def _against_reference(
    score: Score, labelled: LabelledSet, towers: tuple[Tower, ...], inputs: Mapping[str, Path], scratch: Path
) -> dict[str, Any]:
    """The labelled set's section of metrics.json: the engine's figure, the fp32 reference's, and the drop."""
    # The generic fp32 engines are the reference itself, where none was recorded.
    is_itself = "reference.json" not in inputs and all(is_reference(inputs, tower.name) for tower in towers)
    expected = score.values if is_itself else _reference(towers, labelled, inputs, scratch)
    drop = retrieval.drop(expected, score.values)
    return {
        **labelled.facts,
        labelled.figure: rounded(score.values.mean()),
        f"reference_{labelled.figure}": rounded(expected.mean()),
        "drop": rounded(drop.mean),
        "drop_low": rounded(drop.low),
        "drop_high": rounded(drop.high),
    }


def _reference(towers: tuple[Tower, ...], labelled: LabelledSet, inputs: Mapping[str, Path], scratch: Path) -> Any:
    """The fp32 reference's values: as recorded (reference.json), else by running fp32.onnx of each tower."""
    if "reference.json" in inputs:
        record = json.loads(inputs["reference.json"].read_bytes())
        if any(record.get(key) != value for key, value in labelled.identity.items()):
            raise GateError(
                f"reference.json is of {labelled.describe(record)}, not of {labelled.describe(labelled.identity)}; "
                "measure the reference again"
            )
        return np.array(record[labelled.figure], dtype=np.float64)
    how = {"backend": "onnxruntime", "evaluated": "fp32 reference"}
    runners = {}
    for tower in towers:
        path = external_data.stage_input(inputs, suffixed("fp32.onnx", tower.name), scratch)
        runners[tower.name], _ = open_runner(path, Precision.FP32, how, tower, scratch)
    values = labelled.score(runners).values
    _close(runners)
    return values


def _close(runners: Runners) -> None:
    for runner in runners.values():
        runner.backend.close()
