"""Measure an engine with the code that serves it: accuracy, realised precision, speed. Judges nothing."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path

from pipelines.errors import GateError
from pipelines.measure import clip, embed, rerank
from pipelines.stage import StageRequest, StageResult

MEASURES: Mapping[str, Callable[[StageRequest, Path], StageResult]] = {
    "embed": embed.measure,
    "rerank": rerank.measure,
    "clip": clip.measure,
}


def run(request: StageRequest) -> StageResult:
    """The stage: metrics.json; or reference.json, when what is judged on is "reference" (then the fp32 ONNX is enough).

    Rows of a model share one reference.json as input; without it each runs the fp32 ONNX again.
    """
    measure = MEASURES.get(request.params["task"])
    if measure is None:
        raise GateError(f"task '{request.params['task']}' cannot be measured; {', '.join(MEASURES)} can")
    with tempfile.TemporaryDirectory(dir=request.output_dir) as scratch:
        return measure(request, Path(scratch))
