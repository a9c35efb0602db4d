"""Where a run belongs, and which worker refuses it."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipelines.dagster.placement import WORKER_SKUS, queue_of, refusal, verify
from pipelines.errors import WorkerError
from pipelines.matrix.load import load
from pipelines.matrix.values import Worker
from tests.support.fleets import CPU, H100, L40S, Fleet

HERE = Worker(cpu_arch="x86_64", cpu_features=frozenset(), compilers=frozenset({"tensorrt-rtx", "onnx"}))


def test_a_worker_without_the_sku_it_is_to_serve_refuses_with_every_reason(tmp_path: Path, tiny_model: Path) -> None:
    fleet = Fleet.at(tmp_path / "fleet", tiny_model)
    matrix = load(fleet.folder / "matrix.yaml")
    verify(matrix, ["l40s", "cpu-x86-64"], HERE)
    with pytest.raises(WorkerError) as refused:
        verify(matrix, ["h100", "l40z"], HERE)
    assert "h100: needs a worker with h100" in str(refused.value)
    assert "l40z: the matrix has no such SKU" in str(refused.value)


def test_a_run_in_a_wrong_queue_is_refused_and_without_a_worker_nothing_is(tmp_path: Path, tiny_model: Path) -> None:
    fleet = Fleet.at(tmp_path / "fleet", tiny_model)
    rows = {row.name: row for row in load(fleet.folder / "matrix.yaml").rows}
    assert "this worker serves l40s" in str(refusal(rows[CPU], HERE, {WORKER_SKUS: "l40s"}))
    assert refusal(rows[L40S], HERE, {WORKER_SKUS: "l40s"}) is None
    assert "needs a worker with h100" in str(refusal(rows[H100], HERE, {WORKER_SKUS: "h100"}))
    assert refusal(rows[H100], HERE, {}) is None


def test_a_row_goes_to_its_skus_queue_and_everything_else_goes_home() -> None:
    assert queue_of("tiny__l40s__fp8__tp1") == "sku.l40s"
    assert {queue_of(name) for name in ("tiny", "tiny__fp8", None)} == {"home"}
