"""Two small models, built by the real command line and served by the real server, for clients that know neither."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.models import ROOT
from tests.support.served_models import MATRIX, PYTHON, Served, environ, make_reranker, running

SCRIPTS = Path(__file__).parent / "scripts"


@pytest.fixture(scope="session")
def built(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> Path:
    folder = tmp_path_factory.mktemp("clients")
    shutil.copytree(tiny_model, folder / "tiny-bert")
    make_reranker(tiny_model, folder / "tiny-rerank")
    (folder / "matrix.yaml").write_text(MATRIX)
    command = [sys.executable, "-m", "pipelines.cli", "build", "--matrix", "matrix.yaml", "--no-image"]
    environ = {**os.environ, "PYTHONPATH": str(ROOT), "COLUMNS": "200"}
    done = subprocess.run(command, cwd=folder, env=environ, capture_output=True, text=True, timeout=280, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


@pytest.fixture(scope="session")
def embedder(built: Path) -> Iterator[Served]:
    with running(built, "tiny", "tiny-bert") as served:
        yield served


@pytest.fixture(scope="session")
def reranker(built: Path) -> Iterator[Served]:
    with running(built, "tiny-rerank", "tiny-rerank") as served:
        yield served


@pytest.fixture(scope="session")
def client(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Any]:
    """Run a script of tests/clients/scripts with the clients' own Python: its arguments as JSON, its answer as JSON."""
    if not PYTHON.exists():
        if os.environ.get("CI"):
            pytest.fail(f"{PYTHON} is not there: make .venv-clients/.ready")
        pytest.skip("the clients' virtual environment is not there: make .venv-clients/.ready")
    home = tmp_path_factory.mktemp("home")

    def run(script: str, **arguments: Any) -> Any:
        done = subprocess.run(
            [PYTHON, SCRIPTS / script],
            input=json.dumps(arguments),
            env=environ(home),
            cwd=home,
            capture_output=True,
            text=True,
            timeout=200,
            check=False,
        )
        assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-5000:]
        return json.loads(done.stdout.splitlines()[-1])

    return run
