"""What differs from task to task, as one table of modules: `RECIPES["embed"]` knows how to treat embedding models."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from pipelines.recipes import embed
from serving.backends.base import Inputs


class Recipe(Protocol):
    """What export and quantize ask of a task's module."""

    OPTIMUM_TASK: str  # what Optimum calls the task's graph: "feature-extraction"

    def add_head(self, model: Any, folder: Path) -> None:
        """Append to an `onnx.ModelProto`, in place, what turns the body's output into the task's answer."""

    def write_files(
        self, model: Any, folder: Path, params: Mapping[str, Any], texts: Mapping[str, Any], output_dir: Path
    ) -> Mapping[str, Any]:
        """Write tokenizer.json, task.json, golden.json and proof.json; return facts about them."""

    def calibration(
        self, tokenizer: bytes, task: bytes, texts: Sequence[str], num_texts: int, max_tokens: int
    ) -> list[Inputs]:
        """Texts -> batches for an engine, whose activations are what requests will cause."""


RECIPES: Mapping[str, Recipe] = {"embed": embed}
