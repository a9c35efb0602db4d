"""The code location: importing it costs nothing, and Dagster's own loader finds what it defines."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.services import ROOT

# Every file that the import opens, but for the modules themselves.
OPENED = """
import json, os, sys
opened = []
sys.addaudithook(lambda event, args: opened.append(args[0]) if event == "open" and isinstance(args[0], str) else None)
import pipelines.dagster.definitions
files = [os.path.abspath(path) for path in opened if os.path.isfile(path)]
print(json.dumps([path for path in files if not path.endswith((".py", ".pyc", ".so"))]))
"""


def imported(code: str, folder: Path) -> str:
    """What this code prints, run in `folder` with no variable of the factory's set."""
    environ = {name: value for name, value in os.environ.items() if not name.startswith("ENGINERY_")}
    environ["PYTHONPATH"] = str(ROOT)
    command = [sys.executable, "-c", code]
    process = subprocess.run(command, cwd=folder, env=environ, capture_output=True, text=True, timeout=120)
    assert process.returncode == 0, process.stderr
    return process.stdout


def is_of_a_project(path: Path, folder: Path) -> bool:
    """Whether a file lies in `folder` or in the checkout, where that is no part of an installation or of a test run."""
    if not path.is_relative_to(ROOT):
        return path.is_relative_to(folder)
    first = path.relative_to(ROOT).parts[0]
    return not (first.startswith((".venv", ".coverage")) or first.endswith(".egg-info"))


@pytest.mark.parametrize("with_matrix", [False, True])
def test_importing_the_definitions_opens_no_matrix_and_no_model(tmp_path: Path, with_matrix: bool) -> None:
    if with_matrix:
        (tmp_path / "sku_matrix.yaml").write_text("models: {}\n")
    opened = json.loads(imported(OPENED, tmp_path).splitlines()[-1])
    assert [path for path in opened if is_of_a_project(Path(path), tmp_path)] == []


LOADED = """
from dagster._core.workspace.autodiscovery import loadable_targets_from_python_module
(target,) = loadable_targets_from_python_module("pipelines.dagster.definitions", None)
print(target.attribute)
"""


def test_dagsters_loader_takes_the_lazy_definitions_for_the_code_location(tmp_path: Path) -> None:
    assert imported(LOADED, tmp_path).split() == ["defs"]
