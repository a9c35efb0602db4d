"""Collect from the store what the report shows of a model. How it looks is in report.py."""

from __future__ import annotations

import json
import platform
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from pipelines.matrix import Row
from pipelines.plan import State, states
from pipelines.report import CheckLine, ImageLine, Layer, ReportModel, ReportRow, StageLine
from pipelines.steps import Graph, Ref, RowPlan, rung_above
from pipelines.store import Record, Store
from pipelines.toolchain import cpu_model, version_of

if TYPE_CHECKING:
    from pipelines.build import ModelResult

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


def collect(store: Store, steps: Graph, result: ModelResult) -> ReportModel:
    """Everything that the report of one model shows."""
    found = states(steps, store)
    plans = steps.of(result.model)
    metrics = {p.row.name: _json(store, found, p.metrics) for p in plans}
    speeds = comparable_speeds([p.row for p in plans], metrics)
    some: Mapping[str, Any] = next((m["retrieval"] for m in metrics.values() if m), {})
    return ReportModel(
        model=result.model.name,
        task=result.model.task,
        release=result.model.release,
        source=result.model.source,
        num_texts=next((len(m["cosine"]["values"]) for m in metrics.values() if m), 0),
        num_queries=some.get("num_queries", 0),
        reference_ndcg_at_10=some.get("reference_ndcg_at_10"),
        rows=tuple(_row(p, store, found, metrics[p.row.name], speeds, result) for p in plans),
        stages=_stages(plans, steps, found),
        images=tuple(
            ImageLine(
                name=image.reference,
                digest=image.manifest_digest,
                layers=tuple(
                    Layer(content=layer.what, size_bytes=layer.blob.size_bytes, digest=layer.blob.digest)
                    for layer in image.layers
                ),
                reason=image.loaded or "",
            )
            for image in result.images
        ),
        toolchain={name: version_of(name) for name in TOOLCHAIN},
        machine={"CPU": cpu_model(), "Python": platform.python_version(), "system": platform.machine()},
        digests={"model_manifest.yaml": result.manifest_digest},
    )


def _row(
    plan: RowPlan,
    store: Store,
    found: Mapping[str, State],
    metrics: Mapping[str, Any],
    speeds: Mapping[str, tuple[float, float]],
    result: ModelResult,
) -> ReportRow:
    row, sku = plan.row, plan.row.sku
    features = ", ".join(sku.cpu_features) or "any"
    hardware = f"{sku.product} · {sku.compute_capability}" if sku.kind == "gpu" else f"{sku.cpu_arch} · {features}"
    why = "; ".join((result.left_out or {}).get(row.name, ()))
    compiled = _record(found, plan.engine)
    verdict = _json(store, found, plan.verdict)
    if plan.refusal is not None:
        return ReportRow(
            row=row.name,
            sku=sku.name,
            hardware=hardware,
            precision=str(row.precision),
            tp=row.tp,
            state="skipped",
            reason=plan.refusal,
        )
    engine = compiled.outputs["engine"] if compiled else None
    items_per_s, latency_s = speeds.get(row.name, (None, None))
    return ReportRow(
        row=row.name,
        sku=sku.name,
        hardware=hardware,
        precision=str(row.precision),
        tp=row.tp,
        state="broken" if not verdict else "passed" if verdict["passed"] else "failed",
        reason=why,
        remedy="; ".join(verdict.get("remedies", ())),
        size_bytes=engine.size_bytes if engine else None,
        build_s=compiled.duration_s if compiled else None,
        judged_on=verdict.get("judged_on", ""),
        judged_with=verdict.get("judged_with", ""),
        cosine_mean=_figure(metrics, "cosine", "mean"),
        cosine_p1=_figure(metrics, "cosine", "p1"),
        cosine_min=_figure(metrics, "cosine", "min"),
        cosine_values=tuple(metrics.get("cosine", {}).get("values", ())),
        ndcg_at_10=_figure(metrics, "retrieval", "ndcg_at_10"),
        ndcg_drop=_figure(metrics, "retrieval", "drop"),
        batch_invariance=_figure(metrics, "batch_invariance", "min_cosine"),
        items_per_s=items_per_s,
        latency_s=latency_s,
        throughput_ratio=metrics.get("speed", {}).get("throughput_ratio"),
        checks=tuple(CheckLine(**check) for check in verdict.get("checks", ())),
        engine_digest=engine.digest if engine else "",
    )


def comparable_speeds(rows: Sequence[Row], metrics: Mapping[str, Mapping[str, Any]]) -> dict[str, tuple[float, float]]:
    """row -> items/s and s per query. Each was timed in turn with its rung above only, so figures go down the ladder:

    a row's are those of the rung above times the ratio. The generic profile, at the top, has its own.
    """
    found: dict[str, tuple[float, float]] = {}

    def of(row: Row) -> tuple[float, float] | None:
        speed = metrics.get(row.name, {}).get("speed")
        if speed is None:
            return None
        above = rung_above(row, rows)
        base = of(above) if above is not None and speed.get("above") else None
        if base is None:
            return float(speed["items_per_s"]), float(speed["latency_s"])
        return base[0] * float(speed["throughput_ratio"]), base[1] * float(speed["latency_ratio"])

    for row in rows:
        pair = of(row)
        if pair is not None:
            found[row.name] = pair
    return found


def _stages(plans: tuple[RowPlan, ...], steps: Graph, found: Mapping[str, State]) -> tuple[StageLine, ...]:
    wanted = [p.verdict.step for p in plans if p.verdict]
    mine = steps.closure(wanted).steps
    lines = []
    for stage in STAGES:
        records = [found[step_id].record for step_id, step in mine.items() if step.stage == stage]
        lines.append(
            StageLine(
                stage=stage,
                num_steps=len(records),
                num_built=sum(record is not None for record in records),
                num_rows=len(wanted),
                duration_s=sum(record.duration_s for record in records if record is not None),
            )
        )
    return tuple(lines)


def _record(found: Mapping[str, State], ref: Ref | None) -> Record | None:
    return found[ref.step].record if ref is not None else None


def _json(store: Store, found: Mapping[str, State], ref: Ref | None) -> dict[str, Any]:
    record = _record(found, ref)
    if record is None or ref is None:
        return {}
    content: dict[str, Any] = json.loads(store.path(record.outputs[ref.output].digest).read_bytes())
    return content


def _figure(metrics: Mapping[str, Any], part: str, name: str) -> float | None:
    value = metrics.get(part, {}).get(name)
    return float(value) if value is not None else None
