"""What became of a build and of each model, and the exit code that follows."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from pipelines.build.executor import StepResult
from pipelines.image.images import ImageResult
from pipelines.matrix.values import Model

SOME_ROW_FAILED = 3


@dataclass(frozen=True, kw_only=True)
class ModelResult:
    """What became of one model."""

    model: Model
    folder: Path
    shipped: tuple[str, ...] = ()  # rows
    left_out: Mapping[str, tuple[str, ...]] = field(default_factory=dict)  # row -> why it does not ship
    manifest_digest: str = ""
    reused: bool = False  # nothing was packaged anew
    images: tuple[ImageResult, ...] = ()
    notes: tuple[str, ...] = ()
    error: str | None = None
    exit_code: int = 0


@dataclass(frozen=True, kw_only=True)
class BuildResult:
    steps: Mapping[str, StepResult]
    models: tuple[ModelResult, ...]

    @property
    def exit_code(self) -> int:
        """The first model that could not ship decides; else whether some step failed."""
        failed = [model.exit_code for model in self.models if model.error is not None]
        return failed[0] if failed else SOME_ROW_FAILED if any(step.error for step in self.steps.values()) else 0
