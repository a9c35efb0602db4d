"""What several rows' metrics.json say together: how fast each engine is, and what the best one sees."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from pipelines.matrix.values import Row, baseline_row
from pipelines.report.model import Gallery, Picture, ReportRow, Speed
from serving.contract.profile import Precision
from serving.tasks.base import ONLY
from serving.tasks.table import TASKS


def gallery(rows: Sequence[ReportRow]) -> Gallery | None:
    """What the passed profile of lowest precision on this machine makes of some images; None for other tasks."""
    shown = [row for row in rows if row.state == "passed" and row.metrics.get("gallery")]
    if not shown:
        return None
    # The engine's own answers before those of a typed ONNX; then as the server chooses: an engine for one kind of
    # hardware also has the lower precision.
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
            for entry in best.metrics["gallery"]
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
