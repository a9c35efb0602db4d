"""Speeds that were measured at different moments are made comparable through the ratios that were measured together."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pipelines import matrix as matrices
from pipelines.report_facts import comparable_speeds

DEMO = Path(__file__).parents[2] / "sku_matrix.yaml"


def speed(items_per_s: float, latency_s: float, above: Any, **ratios: float) -> dict[str, Any]:
    return {"items_per_s": items_per_s, "latency_s": latency_s, "above": above, **ratios}


def test_a_rows_speed_is_the_rung_aboves_times_the_ratio() -> None:
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
    speeds = comparable_speeds(rows, metrics)
    assert speeds == {generic: (50.0, 0.004), fp32: (60.0, 0.002), bf16: (120.0, 0.001)}
