"""What the queue of runs knows of a row, read from the matrix as it is now."""

from __future__ import annotations

import json
import os
from pathlib import Path

from pipelines.dagster.run_coordinator import pods
from tests.support.fleets import CPU, H100, MATRIX


def test_a_rows_pod_is_the_matrix_own_and_an_edit_of_the_matrix_is_seen(tmp_path: Path) -> None:
    (tmp_path / "tiny-bert").mkdir()
    matrix = tmp_path / "matrix.yaml"
    matrix.write_text(MATRIX)

    def selector(row: str) -> str:
        return json.dumps(json.loads(pods(matrix, matrix.stat().st_mtime_ns)[row])["pod_spec_config"])

    assert "amd64" in selector(CPU)
    assert "NVIDIA-H100-80GB-HBM3" in selector(H100)
    matrix.write_text(MATRIX.replace("h100-80gb-hbm3", "h100-pcie"))
    os.utime(matrix, ns=(1, 1))
    assert "NVIDIA-H100-PCIe" in selector(H100)
