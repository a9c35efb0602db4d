"""`enginery worker` as a person runs it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from pipelines.errors import WorkerError
from tests.support.fleets import Fleet
from tests.support.services import ROOT


def test_the_command_refuses_before_it_takes_anything_from_a_queue(tmp_path: Path, tiny_model: Path) -> None:
    fleet = Fleet.at(tmp_path / "fleet", tiny_model)
    matrix = str(fleet.folder / "matrix.yaml")
    command = [sys.executable, "-m", "pipelines.cli", "worker", "--sku", "h100", "-m", matrix]
    environ = {**os.environ, "PYTHONPATH": str(ROOT), "DAGSTER_HOME": str(tmp_path)}
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, env=environ)
    assert done.returncode == WorkerError.exit_code
    assert "needs a worker with h100" in done.stderr
