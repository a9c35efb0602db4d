"""Collect from the store what the report shows of a model. How it looks is in report.py."""

from __future__ import annotations

import json
import platform
from collections.abc import Mapping, Sequence
from typing import Any

from pipelines.image.build import ImageResult
from pipelines.matrix.values import Model, Row
from pipelines.plan.graph import Graph, Ref, RowPlan
from pipelines.plan.layout import baseline_row
from pipelines.plan.staleness import Staleness, not_here, states
from pipelines.plan.toolchain import cpu_model, version_of
from pipelines.report.model import (
    CheckLine,
    Gallery,
    ImageLine,
    Labelled,
    Layer,
    Picture,
    ReportModel,
    ReportRow,
    Speed,
    StageLine,
    StepLine,
)
from pipelines.store.store import Record, Store
from serving.contract.profile import Precision
from serving.tasks.base import ONLY
from serving.tasks.table import TASKS

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
    steps: Graph,
    model: Model,
    *,
    left_out: Mapping[str, Sequence[str]],
    images: Sequence[ImageResult],
    manifest_digest: str,
) -> ReportModel:
    """Everything that the report of one model shows."""
    found = states(steps, store)
    plans = steps.of(model)
    metrics = {p.row.name: _json(store, found, p.metrics) for p in plans}
    speeds = comparable_speeds([p.row for p in plans], metrics)
    some: Mapping[str, Any] = next((m for m in metrics.values() if m), {})
    rows = tuple(
        _row(p, store, found, metrics[p.row.name], speeds.get(p.row.name, ()), left_out.get(p.row.name, ()))
        for p in plans
    )
    return ReportModel(
        model=model.name,
        task=model.task,
        release=model.release,
        source=model.source,
        num_golden=num_golden(some),
        num_golden_pictures=some.get("num_golden_pictures", 0),
        labelled=labelled(some),
        gallery=gallery(rows, metrics),
        rows=rows,
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
            for image in images
        ),
        toolchain={name: version_of(name) for name in TOOLCHAIN},
        machine={"CPU": cpu_model(), "Python": platform.python_version(), "system": platform.machine()},
        digests={"model_manifest.yaml": manifest_digest},
    )


def _row(
    plan: RowPlan,
    store: Store,
    found: Mapping[str, Staleness],
    metrics: Mapping[str, Any],
    speeds: tuple[Speed, ...],
    left_out: Sequence[str],
) -> ReportRow:
    row, sku = plan.row, plan.row.sku
    features = ", ".join(sku.cpu_features) or "any"
    hardware = f"{sku.product} · {sku.compute_capability}" if sku.kind == "gpu" else f"{sku.cpu_arch} · {features}"
    why = "; ".join(left_out)
    compiled = _record(found, plan.engine)
    verdict = _json(store, found, plan.verdict)
    if (elsewhere := not_here(plan, found)) is not None:
        return ReportRow(
            row=row.name,
            sku=sku.name,
            hardware=hardware,
            precision=str(row.precision),
            tp=row.tp,
            state="skipped",
            reason=elsewhere,
        )
    engines = list(compiled.outputs.values()) if compiled else []
    return ReportRow(
        row=row.name,
        sku=sku.name,
        hardware=hardware,
        precision=str(row.precision),
        tp=row.tp,
        state="broken" if not verdict else "passed" if verdict["passed"] else "failed",
        reason=why,
        remedy="; ".join(verdict.get("remedies", ())),
        size_bytes=sum(engine.size_bytes for engine in engines) or None,
        build_s=compiled.duration_s if compiled else None,
        evaluated=verdict.get("judged_on", ""),
        judged_with=verdict.get("judged_with", ""),
        cosine_mean=_figure(metrics, "cosine", "mean"),
        cosine_p1=_figure(metrics, "cosine", "p1"),
        cosine_min=_figure(metrics, "cosine", "min"),
        losses=losses(metrics),
        text_cosine_min=metrics.get("text_cosine_min"),
        image_cosine_min=metrics.get("image_cosine_min"),
        kendall_tau=_figure(metrics, "scores", "kendall_tau"),
        score_error_mean=_figure(metrics, "scores", "mean_abs_error"),
        score_error_max=_figure(metrics, "scores", "max_abs_error"),
        found=_figure(metrics, "zero_shot", "top1", otherwise=_figure(metrics, "retrieval", "ndcg_at_10")),
        drop=_figure(metrics, "zero_shot", "drop", otherwise=_figure(metrics, "retrieval", "drop")),
        batch_invariance=_figure(
            metrics, "batch_invariance", "min_cosine", otherwise=_figure(metrics, "batch_invariance", "max_abs_error")
        ),
        speeds=speeds,
        checks=tuple(CheckLine(**check) for check in verdict.get("checks", ())),
        engine_digest=" ".join(engine.digest for engine in engines),
    )


def losses(metrics: Mapping[str, Any]) -> tuple[float, ...]:
    """How far each golden answer moved: 1 - cosine, or the error of a reranker's logit."""
    if "scores" in metrics:
        scores = metrics["scores"]
        return tuple(abs(a - b) for a, b in zip(scores.get("found", ()), scores.get("golden", ()), strict=True))
    return tuple(1 - value for value in metrics.get("cosine", {}).get("values", ()))


def num_golden(metrics: Mapping[str, Any]) -> int:
    """Golden texts or pairs, without the pictures."""
    if "scores" in metrics:
        return int(metrics["scores"]["num_pairs"])
    return int(metrics.get("cosine", {}).get("num_texts", 0)) - int(metrics.get("num_golden_pictures", 0))


def labelled(metrics: Mapping[str, Any]) -> Labelled | None:
    """The labelled set that metrics.json tells of."""
    if "zero_shot" in metrics:
        found = metrics["zero_shot"]
        return Labelled(
            name=found["set"],
            num_items=found["num_images"],
            num_choices=found["num_classes"],
            reference=found["reference_top1"],
            baseline=1 / found["num_classes"],
            baseline_name="chance",
        )
    if "retrieval" not in metrics:
        return None
    found = metrics["retrieval"]
    return Labelled(
        name=found["set"],
        num_items=found["num_queries"],
        num_choices=found["num_passages"],
        reference=found["reference_ndcg_at_10"],
        baseline=found.get("first_stage_ndcg_at_10"),
        baseline_name={"bm25": "BM25"}.get(found.get("first_stage", ""), ""),
    )


def gallery(rows: Sequence[ReportRow], metrics: Mapping[str, Mapping[str, Any]]) -> Gallery | None:
    """What the narrowest profile that passed on this machine itself makes of some pictures; None without pictures."""
    shown = [row for row in rows if row.state == "passed" and metrics[row.row].get("gallery")]
    if not shown:
        return None
    # The engine's own answers before those of a typed ONNX; then as the server chooses: one made for a kind of hardware
    # is also the narrower one.
    best = min(shown, key=lambda row: (row.evaluated != "engine", Precision(row.precision).bits, row.row))
    return Gallery(
        row=best.row,
        sku=best.sku,
        precision=best.precision,
        pictures=tuple(
            Picture(
                data=entry["image"],
                caption=entry["class"],
                nearest=tuple((str(caption), float(cosine)) for caption, cosine in entry["nearest"]),
            )
            for entry in metrics[best.row]["gallery"]
        ),
    )


def comparable_speeds(rows: Sequence[Row], metrics: Mapping[str, Mapping[str, Any]]) -> dict[str, tuple[Speed, ...]]:
    """row -> the speed of each of its engines.

    An engine took turns with its baseline alone, so its figures are its baseline's times the ratio. The generic profile
    has no baseline: its figures are as measured.
    """

    def of(row: Row, tower: str) -> Speed | None:
        speed = _of_towers(metrics.get(row.name, {})).get(tower)
        if speed is None:
            return None
        baseline = baseline_row(row, rows)
        base = of(baseline, tower) if baseline is not None and speed.get("baseline") else None
        ratio = speed.get("throughput_ratio")
        if base is None:
            return Speed(
                tower=tower,
                items_per_s=float(speed["items_per_s"]),
                latency_s=float(speed["latency_s"]),
                throughput_ratio=ratio,
            )
        return Speed(
            tower=tower,
            items_per_s=base.items_per_s * float(speed["throughput_ratio"]),
            latency_s=base.latency_s * float(speed["latency_ratio"]),
            throughput_ratio=ratio,
        )

    found = {row.name: [of(row, tower) for tower in TASKS[row.model.task].towers] for row in rows}
    return {name: tuple(s for s in speeds if s is not None) for name, speeds in found.items() if any(speeds)}


def _of_towers(metrics: Mapping[str, Any]) -> Mapping[str, Any]:
    """tower -> its speed in metrics.json."""
    speed = metrics.get("speed")
    if speed is None:
        return {}
    towers: Mapping[str, Any] = speed.get("towers", {ONLY: speed})
    return towers


def _stages(plans: tuple[RowPlan, ...], steps: Graph, found: Mapping[str, Staleness]) -> tuple[StageLine, ...]:
    wanted = [p.verdict.step for p in plans if p.verdict]
    mine = steps.closure(wanted).steps
    lines = []
    for stage in STAGES:
        of_stage = [step_id for step_id, step in mine.items() if step.stage == stage]
        records = [record for step_id in of_stage if (record := found[step_id].record) is not None]
        lines.append(
            StageLine(
                stage=stage,
                num_steps=len(of_stage),
                num_built=len(records),
                num_rows=len(wanted),
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


def _record(found: Mapping[str, Staleness], ref: Ref | None) -> Record | None:
    return found[ref.step].record if ref is not None else None


def _json(store: Store, found: Mapping[str, Staleness], ref: Ref | None) -> dict[str, Any]:
    record = _record(found, ref)
    if record is None or ref is None:
        return {}
    content: dict[str, Any] = json.loads(store.path(record.outputs[ref.output].digest).read_bytes())
    return content


def _figure(metrics: Mapping[str, Any], part: str, name: str, *, otherwise: float | None = None) -> float | None:
    value = metrics.get(part, {}).get(name)
    return float(value) if value is not None else otherwise
