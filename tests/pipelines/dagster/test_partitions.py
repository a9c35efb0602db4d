"""The partitions of the demo's matrix."""

from __future__ import annotations

from pathlib import Path

from pipelines.dagster.lineage import lineage
from pipelines.dagster.partitions import Partitions
from pipelines.matrix import load as matrices
from pipelines.matrix.values import Worker
from pipelines.plan.layout import graph

DEMO = Path(__file__).parents[3] / "sku_matrix.yaml"


def test_every_row_is_one_partition_and_its_run_is_tagged_with_what_its_worker_must_be() -> None:
    matrix = matrices.load(DEMO)
    worker = Worker(
        cpu_arch="x86_64", cpu_features=frozenset(), compilers=frozenset({"tensorrt-rtx", "openvino", "onnx"})
    )
    demo = graph(matrix, matrix.rows, worker)
    rows = Partitions(demo, lineage(demo)).of["engine"]
    assert rows.get_partition_keys() == [plan.row.name for plan in demo.rows]
    tags = rows.get_tags_for_partition_key("all-minilm-l6-v2__l40s__fp8__tp1")
    assert tags["enginery/sku"] == "l40s"
    assert tags["enginery/precision"] == "fp8"
