"""Start Dagster's webserver and daemon over this matrix, this store and this dist."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import NoReturn

from pipelines.matrix import load as matrices
from pipelines.store.files import write_atomically

INSTANCE = b"""# Written by `enginery ui`. One machine, one user, nothing leaves it.
telemetry:
  enabled: false
nux:
  enabled: false
# Two runs at a time, and one step of each pool (export, engine, measure, package, publish), so that memory suffices
# and what is timed is alone. docs/dagster.md says how a team sets this up on several machines.
concurrency:
  runs:
    max_concurrent_runs: 2
  pools:
    granularity: op
    default_limit: 1
# A run that was killed with the machine is started anew.
run_retries:
  enabled: true
  max_retries: 1
"""


def exec_webserver(matrix: Path, *, store: Path, dist: Path, host: str, port: int) -> NoReturn:
    """Replace this process by `dagster dev`. The matrix is read first, so that its problems are told plainly."""
    matrices.load(matrix)
    home = Path(os.environ.get("DAGSTER_HOME", ".dagster")).absolute()
    if not (home / "dagster.yaml").exists():
        write_atomically(home / "dagster.yaml", INSTANCE)
    environ = {
        **os.environ,
        "DAGSTER_HOME": str(home),
        "ENGINERY_MATRIX": str(matrix.absolute()),
        "ENGINERY_STORE": str(store.absolute()),
        "ENGINERY_DIST": str(dist.absolute()),
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}",
    }
    command = [
        sys.executable,
        "-m",
        "dagster",
        "dev",
        "-m",
        "pipelines.dagster.definitions",
        "-h",
        host,
        "-p",
        str(port),
    ]
    os.execve(sys.executable, command, environ)  # noqa: S606
