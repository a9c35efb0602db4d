"""The example that builds models of real size, with its smallest one: what each step of the factory may hold."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "examples" / "large" / "random_weights.py"


@pytest.mark.slow
def test_no_step_of_a_large_model_holds_more_than_three_times_its_weights_and_a_gigabyte(tmp_path: Path) -> None:
    command = [sys.executable, str(SCRIPT), "bert-160m", "--folder", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=900)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "ships 5 profiles" in done.stdout
    told = re.search(r"fp32 weights ([\d.]+) GB", done.stdout)
    assert told is not None
    weights = float(told[1])
    assert 0.6 < weights < 0.7, "above the size from which models are worked on light"
    steps = re.findall(r"^(\w+) +(\S+) +[\d.]+ s +([\d.]+) GB", done.stdout, re.MULTILINE)
    assert {stage for stage, _, _ in steps} == {"texts", "export", "quantize", "compile", "measure"}
    assert [step for step in steps if float(step[2]) > 3 * weights + 1] == []
