"""What a row of the table of tasks holds, and what the recipe that it names must have."""

from __future__ import annotations

import pkgutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from pipelines.gate.rules import Rules
from pipelines.gate.thresholds import Thresholds
from pipelines.tasks.labels import Labels
from serving.contract.profile import Precision
from serving.tasks.base import Item, Spec


@dataclass(frozen=True, kw_only=True)
class Task:
    """What the factory does differently for one task. Its towers and files are the server's (serving.tasks.table).

    Code is named as "module" or "module:object" and imported where it is used: a stage loads its own task's only, and
    the row can lie below the packages that it names.
    """

    recipe: str  # a module: Recipe
    measure: str  # a pipelines.measure.base.Measure
    demo: str  # what `enginery demo` asks the server: (console, url, folder) -> None
    rules: Rules
    thresholds: Mapping[Precision, Thresholds]
    labels: Labels  # in the report
    model_keys: frozenset[str] = frozenset()  # of the matrix, which no other task takes
    required_keys: frozenset[str] = frozenset()  # of these


def resolve(name: str) -> Any:
    """The module or object that a row names."""
    return pkgutil.resolve_name(name)


@dataclass(frozen=True, kw_only=True)
class Answers:
    """What a server must know of a model beside its engines and tokenizer, and what the fp32 reference answers."""

    spec: Spec
    golden: bytes  # golden.json: what the gate compares with
    proof: bytes  # proof.json: the part of it that ships
    facts: Mapping[str, Any]  # what a person sees


class Recipe(Protocol):
    """What export and quantize ask of a task's module."""

    def to_onnx(self, folder: Path, scratch: Path) -> Mapping[str, Any]:
        """A model folder -> an `onnx.ModelProto` in float32 for each tower, which gives the task's answer, (B, D).

        Axes that may vary are named B and T. scratch: an empty folder for the exporter's files. Raises ExportError.
        """

    def answers(
        self,
        models: Mapping[str, Any],
        folder: Path,
        params: Mapping[str, Any],
        texts: Mapping[str, Any],
        tokenizer: bytes,
    ) -> Answers:
        """models: as to_onnx gave them. params: the stage's. texts, tokenizer: texts.json and tokenizer.json.

        Raises ExportError, also where the server's preprocessing is not the model's own.
        """

    def calibration(self, encoder: Any, tower: str, texts: Sequence[str], params: Mapping[str, Any]) -> Sequence[Item]:
        """One item for each text, or an image in its place: what a tower's engine will see.

        encoder: the task's, which cuts texts at the calibration's max_tokens.
        """
