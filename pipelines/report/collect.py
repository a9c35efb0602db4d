"""Collect what the report shows of a model: the plan's rows with what the store has of them. Page and plots draw it."""

from __future__ import annotations

import json
import platform
from collections.abc import Mapping, Sequence
from typing import Any

from pipelines.gate import verdict as verdicts
from pipelines.image.images import ImageResult
from pipelines.matrix.values import Model, Row
from pipelines.plan.graph import Ref, RowPlan
from pipelines.plan.staleness import Plan, not_here
from pipelines.plan.toolchain import cpu_model, version_of
from pipelines.report import figures
from pipelines.report.model import ImageLine, Layer, ReportModel, ReportRow, Speed, StageLine, StepLine
from pipelines.store.store import Record, Store
from pipelines.tasks.table import TASKS

TOOLCHAIN = (
    "torch",
    "transformers",
    "optimum",
    "nvidia-modelopt",
    "onnx",
    "onnxruntime",
    "openvino",
    "tensorrt-rtx-cu13-bindings",
    "tokenizers",
)
STAGES = ("texts", "export", "quantize", "compile", "measure", "judge")


def collect(
    store: Store,
    plan: Plan,
    model: Model,
    *,
    left_out: Mapping[str, Sequence[str]],
    images: Sequence[ImageResult],
    manifest_digest: str,
) -> ReportModel:
    """Everything that the report of one model shows."""
    planned, labels = plan.graph.of(model), TASKS[model.task].labels
    metrics = {row.row.name: _metrics(store, plan, row.metrics) for row in planned}
    speeds = figures.speeds([row.row for row in planned], metrics)
    some: Mapping[str, Any] = next((content for content in metrics.values() if content), {})
    rows = tuple(
        _row(
            row,
            plan,
            store,
            metrics[row.row.name],
            speeds=speeds.get(row.row.name, ()),
            reason="; ".join(left_out.get(row.row.name, ())),
        )
        for row in planned
    )
    return ReportModel(
        model=model.name,
        task=model.task,
        release=model.release,
        source=model.source,
        num_golden=labels.num_golden(some),
        num_golden_pictures=some.get("num_golden_pictures", 0),
        labelled=labels.labelled(some),
        gallery=figures.gallery(rows),
        rows=rows,
        stages=_stages(planned, plan),
        images=tuple(_image(image) for image in images),
        toolchain={name: version_of(name) for name in TOOLCHAIN},
        machine={"CPU": cpu_model(), "Python": platform.python_version(), "system": platform.machine()},
        digests={"model_manifest.yaml": manifest_digest},
    )


def _row(
    planned: RowPlan,
    plan: Plan,
    store: Store,
    metrics: Mapping[str, Any],
    *,
    speeds: tuple[Speed, ...],
    reason: str,
) -> ReportRow:
    row = planned.row
    elsewhere = not_here(planned, plan.states)
    if elsewhere is not None:
        return ReportRow(
            row=row.name,
            sku=row.sku.name,
            hardware=hardware(row),
            precision=str(row.precision),
            tp=row.tp,
            state="skipped",
            reason=elsewhere,
        )
    compiled, judged = plan.record(planned.engine), plan.record(planned.verdict)
    engines = list(compiled.outputs.values()) if compiled else []
    verdict = verdicts.load(_bytes(store, judged, "verdict.json")) if judged else None
    return ReportRow(
        row=row.name,
        sku=row.sku.name,
        hardware=hardware(row),
        precision=str(row.precision),
        tp=row.tp,
        state="broken" if verdict is None else "passed" if verdict.passed else "failed",
        reason=reason,
        remedy="; ".join(verdict.remedies) if verdict else "",
        size_bytes=sum(engine.size_bytes for engine in engines) or None,
        build_s=compiled.duration_s if compiled else None,
        evaluated=verdict.evaluated if verdict else "",
        judged_with=verdict.judged_with if verdict else "",
        speeds=speeds,
        checks=verdict.checks if verdict else (),
        engine_digest=" ".join(engine.digest for engine in engines),
        metrics=metrics,
    )


def hardware(row: Row) -> str:
    """ "NVIDIA L40S · 8.9" or "x86_64 · avx512_bf16"."""
    sku = row.sku
    if sku.kind == "gpu":
        return f"{sku.product} · {sku.compute_capability}"
    return f"{sku.cpu_arch} · {', '.join(sku.cpu_features) or 'any'}"


def _image(image: ImageResult) -> ImageLine:
    return ImageLine(
        name=image.reference,
        digest=image.manifest_digest,
        layers=tuple(
            Layer(content=layer.what, size_bytes=layer.size_bytes, digest=layer.digest) for layer in image.layers
        ),
        reason=image.not_loaded_because or "",
    )


def _stages(planned: Sequence[RowPlan], plan: Plan) -> tuple[StageLine, ...]:
    judged = [row.verdict.step for row in planned if row.verdict]
    steps = plan.graph.closure(judged).steps
    lines = []
    for stage in STAGES:
        of_stage = [step_id for step_id, step in steps.items() if step.stage == stage]
        records = [record for step_id in of_stage if (record := plan.states[step_id].record) is not None]
        lines.append(
            StageLine(
                stage=stage,
                num_steps=len(of_stage),
                num_built=len(records),
                num_rows=len(judged),
                duration_s=sum(record.duration_s for record in records),
                peak_rss_bytes=max((record.peak_rss_bytes for record in records), default=0),
                steps=tuple(_step(record) for record in records if record.peak_rss_bytes),
            )
        )
    return tuple(lines)


def _step(record: Record) -> StepLine:
    return StepLine(
        subject=record.subject,
        duration_s=record.duration_s,
        peak_rss_bytes=record.peak_rss_bytes,
        size_bytes=sum(blob.size_bytes for blob in record.outputs.values()),
    )


def _metrics(store: Store, plan: Plan, ref: Ref | None) -> dict[str, Any]:
    record = plan.record(ref)
    content: dict[str, Any] = json.loads(_bytes(store, record, "metrics.json")) if record else {}
    return content


def _bytes(store: Store, record: Record, name: str) -> bytes:
    return store.path(record.outputs[name].digest).read_bytes()
