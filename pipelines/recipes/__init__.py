"""What differs from task to task, as one table of modules: `RECIPES["embed"]` knows how to treat embedding models."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from pipelines.recipes import clip, embed, rerank
from serving.backends.base import Inputs


class Recipe(Protocol):
    """What export and quantize ask of a task's module."""

    def to_onnx(self, folder: Path, scratch: Path) -> Mapping[str, Any]:
        """A model folder -> an `onnx.ModelProto` in float32 for each tower, which gives the task's answer, (B, D).

        The towers are those of serving.tasks.table.TASKS. Axes that may vary are named B and T. scratch: an empty
        folder for the exporter's files. Raises ExportError.
        """

    def write_files(
        self,
        models: Mapping[str, Any],
        folder: Path,
        params: Mapping[str, Any],
        texts: Mapping[str, Any],
        output_dir: Path,
    ) -> Mapping[str, Any]:
        """Write tokenizer.json, task.json, golden.json and proof.json; return facts about them."""

    def calibration(
        self,
        tower: str,
        tokenizer: bytes,
        task: bytes,
        texts: Sequence[str],
        num_texts: int,
        max_tokens: int,
        params: Mapping[str, Any],
    ) -> list[Inputs]:
        """Batches for a tower's engine, whose activations are what requests will cause."""


RECIPES: Mapping[str, Recipe] = {"embed": embed, "rerank": rerank, "clip": clip}
