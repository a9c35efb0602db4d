"""What a stage is: a plain function from a request to a result, run as `python -m pipelines.stage` in a process."""

from __future__ import annotations

import importlib
import json
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

# Every stage that can run as a command, and the module that holds its `run` function.
STAGES = {
    "texts": "pipelines.datasets.docstrings",
    "export": "pipelines.export",
    "quantize": "pipelines.quantize",
    "shard": "pipelines.shard",
    "compile": "pipelines.compile",
    "measure": "pipelines.measure",
}


@dataclass(frozen=True, kw_only=True)
class StageRequest:
    """What a stage is asked to do. Its key is a digest over all of it but the folder."""

    stage: str  # "quantize"
    subject: str  # what it is for, in the plan's words: "all-minilm-l6-v2__fp8"
    params: Mapping[str, Any]  # JSON values only
    inputs: Mapping[str, Path]  # name -> file: {"model.onnx": …}
    output_dir: Path  # exists and is empty; everything the stage writes goes here


@dataclass(frozen=True, kw_only=True)
class StageResult:
    """What a stage made."""

    outputs: Mapping[str, Path]  # name -> file under output_dir
    facts: Mapping[str, Any] = field(default_factory=dict)  # JSON values a person wants to see; never hashed


@contextmanager
def scratch_folder(request: StageRequest) -> Iterator[Path]:
    """An empty folder for temporary files, also for those of libraries. It is gone when the stage ends."""
    folder = request.output_dir / "scratch"
    folder.mkdir()
    before, tempfile.tempdir = tempfile.tempdir, str(folder)
    try:
        yield folder
    finally:
        tempfile.tempdir = before
        shutil.rmtree(folder)


def run(request: StageRequest) -> StageResult:
    """Run one stage in this process."""
    function: Callable[[StageRequest], StageResult] = importlib.import_module(STAGES[request.stage]).run
    return function(request)


def main(request_path: str) -> int:
    """Read a request, run it, write `result.json` beside it. The exit code is the error class's own."""
    from pipelines.errors import EngineryError

    path = Path(request_path)
    raw = json.loads(path.read_text())
    request = StageRequest(
        stage=raw["stage"],
        subject=raw["subject"],
        params=raw["params"],
        inputs={name: Path(p) for name, p in raw["inputs"].items()},
        output_dir=Path(raw["output_dir"]),
    )
    try:
        result = run(request)
    except EngineryError as error:
        answer: dict[str, Any] = {
            "error": str(error),
            "kind": type(error).__name__,
            "transient": error.transient,
        }
        code = error.exit_code
    else:
        answer = {"outputs": {n: str(p) for n, p in result.outputs.items()}, "facts": dict(result.facts)}
        code = 0
    (path.parent / "result.json").write_text(json.dumps(answer))
    return code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
