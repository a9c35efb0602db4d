"""Each import contract is seen to break: one line is added to a copy of the tree, and lint-imports fails."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from tests.support.published import ROOT

SERVER = "The server knows nothing of the factory"
BENCHMARKS = "The factory does not import the benchmarks"
ROUNDS = "The benchmarks' layers: commands on top, what they share below"
LAYERS = "The factory's layers: the walk of a row, read from below"
DAGSTER = "Only pipelines.dagster imports dagster"
TAKEN = "The factory takes the server's contract, tasks, backends, hardware and proof, nothing else of it"
WIRED = "Batching, choice and tasks do not know each other: start wires them"
PLANTED = [
    (SERVER, "serving/tasks/embed.py", "from pipelines.errors import EngineryError"),
    (SERVER, "serving/backends/onnxruntime.py", "def late():\n    import onnx"),
    (LAYERS, "pipelines/store/store.py", "from pipelines.plan.layout import graph"),
    (LAYERS, "pipelines/plan/layout.py", "from pipelines.inspect.explain import explain"),
    (LAYERS, "pipelines/helpers/__init__.py", "from pipelines.errors import EngineryError"),
    (BENCHMARKS, "pipelines/cli/main.py", "def late():\n    import benchmarks.command"),
    (ROUNDS, "benchmarks/load/job.py", "from benchmarks.scenarios.scenarios import Requests"),
    (ROUNDS, "benchmarks/report/page.py", "from benchmarks.servers.endpoint import Endpoint"),
    (DAGSTER, "pipelines/plan/layout.py", "def late():\n    import dagster"),
    (TAKEN, "pipelines/build/build_matrix.py", "from serving.start.boot import start"),
    (TAKEN, "pipelines/measure/embed.py", "from serving.cache.fetch import ensure"),
    (WIRED, "serving/tasks/embed.py", "from serving.choice.select import select"),
]


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    for package in ("pipelines", "serving", "benchmarks"):
        shutil.copytree(ROOT / package, tmp_path / package, ignore=shutil.ignore_patterns("__pycache__", "results"))
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    return tmp_path


def lint_imports(tree: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [Path(sys.executable).parent / "lint-imports", "--no-cache"],
        cwd=tree,
        env={**os.environ, "PYTHONPATH": str(tree), "COLUMNS": "200"},
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )


def test_the_tree_as_it_is_keeps_every_contract(tree: Path) -> None:
    done = lint_imports(tree)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "0 broken" in done.stdout


@pytest.mark.parametrize(("contract", "path", "line"), PLANTED)
def test_a_planted_import_breaks_its_contract(tree: Path, contract: str, path: str, line: str) -> None:
    (tree / path).parent.mkdir(exist_ok=True)
    with (tree / path).open("a") as file:
        file.write(f"\n\n{line}\n")
    done = lint_imports(tree)
    assert done.returncode == 1, done.stdout + done.stderr
    assert f"{contract} BROKEN" in done.stdout or ("helpers" in path and "helpers" in done.stdout), done.stdout


def test_every_contract_has_a_planted_violation() -> None:
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]
    assert {contract["name"] for contract in contracts} == {contract for contract, _, _ in PLANTED}
