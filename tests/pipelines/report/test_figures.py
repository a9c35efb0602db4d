"""Speeds that were measured at different moments are made comparable through the ratios that were measured together."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from pipelines.matrix import load as matrices
from pipelines.matrix.values import Row
from pipelines.report import figures
from pipelines.report.figures import gallery
from pipelines.report.model import Picture, ReportRow, Speed, State

DEMO = Path(__file__).parents[3] / "sku_matrix.yaml"
CLIP_DEMO = Path(__file__).parents[3] / "examples" / "clip" / "matrix.yaml"


@pytest.fixture
def clip_rows(tmp_path: Path) -> list[Row]:
    """The CPU rows of the CLIP demo, whose model and pictures need not have been made yet."""
    (tmp_path / "matrix.yaml").write_bytes(CLIP_DEMO.read_bytes())
    (tmp_path / "model").mkdir()
    (tmp_path / "pictures").mkdir()
    (tmp_path / "pictures" / "classes.json").write_text('["a", "b"]')
    return [row for row in matrices.load(tmp_path / "matrix.yaml").rows if row.sku.kind == "cpu"]


def speed(items_per_s: float, latency_s: float, baseline: Any, **ratios: float) -> dict[str, Any]:
    return {"items_per_s": items_per_s, "latency_s": latency_s, "baseline": baseline, **ratios}


def test_a_rows_speed_is_its_baselines_times_the_ratio() -> None:
    rows = [row for row in matrices.load(DEMO).rows if row.sku.kind == "cpu"]
    generic, fp32, bf16 = (
        "all-minilm-l6-v2__cpu-x86-64__fp32__tp1",
        "all-minilm-l6-v2__cpu-avx512-bf16__fp32__tp1",
        "all-minilm-l6-v2__cpu-avx512-bf16__bf16__tp1",
    )
    metrics = {
        generic: {"speed": speed(50.0, 0.004, None)},
        # Timed while the machine was idle: its own figures must not be held against the generic one's.
        fp32: {"speed": speed(500.0, 0.001, {"items_per_s": 400.0}, throughput_ratio=1.2, latency_ratio=0.5)},
        bf16: {"speed": speed(9.0, 9.0, {"items_per_s": 4.5}, throughput_ratio=2.0, latency_ratio=0.5)},
    }
    speeds = figures.speeds(rows, metrics)
    assert {name: (s.items_per_s, s.latency_s) for name, (s,) in speeds.items()} == {
        generic: (50.0, 0.004),
        fp32: (60.0, 0.002),
        bf16: (120.0, 0.001),
    }
    assert speeds[bf16][0].throughput_ratio == 2.0


def test_each_engine_of_a_row_has_baselines_of_its_own(clip_rows: list[Row]) -> None:
    generic, bf16 = "drawn-clip__cpu-x86-64__fp32__tp1", "drawn-clip__cpu-avx512-bf16__bf16__tp1"
    baseline = {"text": {}, "image": {}}
    alone = {"text": speed(1000.0, 0.001, None), "image": speed(50.0, 0.02, None)}
    metrics = {
        generic: {"speed": {"baseline": None, "towers": alone}},
        bf16: {
            "speed": {
                "baseline": baseline,
                "towers": {
                    "text": speed(9.0, 9.0, {"items_per_s": 4.0}, throughput_ratio=1.5, latency_ratio=0.8),
                    "image": speed(9.0, 9.0, {"items_per_s": 4.0}, throughput_ratio=2.0, latency_ratio=0.5),
                },
            }
        },
    }
    found = figures.speeds(clip_rows, metrics)
    assert found[bf16] == (
        Speed(tower="text", items_per_s=1500.0, latency_s=0.0008, throughput_ratio=1.5),
        Speed(tower="image", items_per_s=100.0, latency_s=0.01, throughput_ratio=2.0),
    )


def test_the_gallery_is_what_the_engine_of_lowest_precision_on_this_machine_sees() -> None:
    entry = {"image": "QUJD", "nearest": [["a", 0.9], ["b", 0.1]]}

    def judged(name: str, precision: str, evaluated: str, state: State = "passed") -> ReportRow:
        metrics = {"gallery": [{**entry, "class": name}]}
        row = ReportRow(row=name, sku=name, hardware="", precision=precision, tp=1, state=state, metrics=metrics)
        return replace(row, evaluated=evaluated)

    rows = [
        judged("l40s", "fp16", "typed-onnx"),
        judged("l4", "fp8", "typed-onnx"),
        judged("generic", "fp32", "engine"),
        judged("cpu-int8", "int8", "engine", "failed"),
        judged("cpu-bf16", "bf16", "engine"),
    ]
    found = gallery(rows)
    assert found is not None
    assert (found.row, found.precision) == ("cpu-bf16", "bf16")
    assert found.pictures == (Picture(data="QUJD", caption="cpu-bf16", nearest=(("a", 0.9), ("b", 0.1))),)
    assert gallery([replace(row, metrics={}) for row in rows]) is None
