"""Printing never ends a build, whatever letters a terminal has."""

from __future__ import annotations

import io
import os
import subprocess
import sys
from pathlib import Path

import pytest

from pipelines.cli import terminal

ROOT = Path(__file__).parents[3]


@pytest.mark.parametrize(
    ("encoding", "expected"),
    [
        ("utf-8", "✓ 2 × l40s … Ж"),
        ("iso-8859-1", "+ 2 × l40s ... ?"),
        ("ascii", "+ 2 x l40s ... ?"),
    ],
)
def test_a_terminal_shows_the_nearest_letters_that_it_has(encoding: str, expected: str) -> None:
    raw = io.BytesIO()
    stream = io.TextIOWrapper(raw, encoding=encoding)
    terminal.prepare([stream])
    stream.write("✓ 2 × l40s … Ж")
    stream.flush()
    assert raw.getvalue().decode(encoding) == expected


def test_the_plan_is_printed_under_the_c_locale(tmp_path: Path) -> None:
    environ = {**os.environ, "PYTHONPATH": str(ROOT), "LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    command = [sys.executable, "-m", "pipelines.cli", "plan", "-m", str(ROOT / "sku_matrix.yaml")]
    done = subprocess.run(
        [*command, "--store", str(tmp_path)], env=environ, capture_output=True, cwd=tmp_path, check=False, timeout=120
    )
    assert done.returncode == 0, done.stderr.decode("ascii", "replace")
    assert " x " in done.stdout.decode("ascii")
