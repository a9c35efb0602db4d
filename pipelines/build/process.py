"""Run a stage in a process of its own: request in; outputs, facts and peak memory out."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pipelines.errors import EngineryError, StageCrashed
from pipelines.plan.graph import Step
from pipelines.store.files import canonical

LOG_TAIL_LINES = 15
# The same hash order in every process, and nothing sent anywhere.
STAGE_ENVIRONMENT = {
    "PYTHONHASHSEED": "0",
    "DO_NOT_TRACK": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "ORT_DISABLE_TELEMETRY": "1",
}


def run_stage(step: Step, inputs: Mapping[str, Path], folder: Path) -> tuple[dict[str, Path], dict[str, Any], int]:
    """Run a stage as `python -m pipelines.stage`: a fresh process, so that its bytes depend on its request alone."""
    output_dir = folder / "out"
    output_dir.mkdir()
    request = folder / "request.json"
    request.write_bytes(
        canonical(
            {
                "stage": step.stage,
                "subject": step.subject,
                "params": dict(step.params),
                "inputs": {name: str(path) for name, path in inputs.items()},
                "output_dir": str(output_dir),
            }
        )
    )
    log = folder / "log"
    with log.open("wb") as sink:
        process = subprocess.Popen(
            [sys.executable, "-m", "pipelines.stage", str(request)],
            stdin=subprocess.DEVNULL,
            stdout=sink,
            stderr=subprocess.STDOUT,
            cwd=folder,
            env={**os.environ, **STAGE_ENVIRONMENT},
        )
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    answer_path = folder / "result.json"
    if not answer_path.exists():
        raise StageCrashed(f"{step.id} {_ended(process.returncode)}; the end of its log:\n{_tail(log)}")
    answer = json.loads(answer_path.read_text())
    if "error" in answer:
        failed = EngineryError(f"{step.id}: {answer['error']}")
        failed.transient = bool(answer.get("transient"))
        raise failed
    outputs = {name: Path(path) for name, path in answer["outputs"].items()}
    missing = [name for name, path in outputs.items() if not path.is_file()]
    if missing:
        raise StageCrashed(f"{step.id} named outputs that it did not write: {', '.join(sorted(missing))}")
    return outputs, answer["facts"], usage.ru_maxrss * 1024


def _ended(code: int) -> str:
    if code < 0:
        name = signal.Signals(-code).name
        hint = " (out of memory?)" if name == "SIGKILL" else ""
        return f"was ended by {name}{hint}"
    return f"ended with exit code {code} and no answer"


def _tail(log: Path) -> str:
    lines = log.read_text(errors="replace").splitlines()
    return "\n".join(f"    {line}" for line in lines[-LOG_TAIL_LINES:])
