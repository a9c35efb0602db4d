"""What metrics.json says of a row, in the report's terms: how far answers moved, labelled sets, speeds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from pipelines.matrix.values import Row, baseline_row
from pipelines.report.model import Gallery, Labelled, Picture, ReportRow, Speed
from serving.contract.profile import Precision
from serving.tasks.base import ONLY
from serving.tasks.table import TASKS


def of_row(metrics: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of ReportRow that metrics.json decides; empty where nothing was measured."""
    return {
        "cosine_mean": _figure(metrics, "cosine", "mean"),
        "cosine_p1": _figure(metrics, "cosine", "p1"),
        "cosine_min": _figure(metrics, "cosine", "min"),
        "losses": losses(metrics),
        "text_cosine_min": metrics.get("text_cosine_min"),
        "image_cosine_min": metrics.get("image_cosine_min"),
        "kendall_tau": _figure(metrics, "scores", "kendall_tau"),
        "score_error_mean": _figure(metrics, "scores", "mean_abs_error"),
        "score_error_max": _figure(metrics, "scores", "max_abs_error"),
        "quality": _figure(metrics, "zero_shot", "top1", otherwise=_figure(metrics, "retrieval", "ndcg_at_10")),
        "drop": _figure(metrics, "zero_shot", "drop", otherwise=_figure(metrics, "retrieval", "drop")),
        "batch_invariance": _figure(
            metrics, "batch_invariance", "min_cosine", otherwise=_figure(metrics, "batch_invariance", "max_abs_error")
        ),
    }


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
        zero_shot = metrics["zero_shot"]
        return Labelled(
            name=zero_shot["set"],
            num_items=zero_shot["num_images"],
            num_choices=zero_shot["num_classes"],
            reference=zero_shot["reference_top1"],
            baseline=1 / zero_shot["num_classes"],
            baseline_name="chance",
        )
    if "retrieval" not in metrics:
        return None
    retrieval = metrics["retrieval"]
    return Labelled(
        name=retrieval["set"],
        num_items=retrieval["num_queries"],
        num_choices=retrieval["num_passages"],
        reference=retrieval["reference_ndcg_at_10"],
        baseline=retrieval.get("first_stage_ndcg_at_10"),
        baseline_name={"bm25": "BM25"}.get(retrieval.get("first_stage", ""), ""),
    )


def gallery(rows: Sequence[ReportRow], metrics: Mapping[str, Mapping[str, Any]]) -> Gallery | None:
    """What the narrowest profile that passed on this machine itself makes of some pictures; None without pictures."""
    with_pictures = [row for row in rows if row.state == "passed" and metrics[row.row].get("gallery")]
    if not with_pictures:
        return None
    # The engine's own answers before those of a typed ONNX; then as the server chooses: one made for a kind of hardware
    # is also the narrower one.
    best = min(with_pictures, key=lambda row: (row.evaluated != "engine", Precision(row.precision).bits, row.row))
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


def speeds(rows: Sequence[Row], metrics: Mapping[str, Mapping[str, Any]]) -> dict[str, tuple[Speed, ...]]:
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

    by_row = {row.name: [of(row, tower) for tower in TASKS[row.model.task].towers] for row in rows}
    return {name: tuple(s for s in speeds if s is not None) for name, speeds in by_row.items() if any(speeds)}


def _of_towers(metrics: Mapping[str, Any]) -> Mapping[str, Any]:
    """tower -> its speed in metrics.json."""
    speed = metrics.get("speed")
    if speed is None:
        return {}
    towers: Mapping[str, Any] = speed.get("towers", {ONLY: speed})
    return towers


def _figure(metrics: Mapping[str, Any], part: str, name: str, *, otherwise: float | None = None) -> float | None:
    value = metrics.get(part, {}).get(name)
    return float(value) if value is not None else otherwise
