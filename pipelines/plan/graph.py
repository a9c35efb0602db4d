"""The steps of a build as values, and what each takes from others. pipelines.plan.layout lays them out."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from pipelines.matrix.values import Matrix, Model, Row
from pipelines.plan.workers import WorkerRecord
from serving.tasks.base import suffixed


@dataclass(frozen=True, kw_only=True)
class Ref:
    """An output of a step."""

    step: str  # "export/all-minilm-l6-v2"
    output: str  # "model.onnx"

    def of(self, tower: str) -> Ref:
        """The same output for one tower: "image.onnx"."""
        return Ref(step=self.step, output=suffixed(self.output, tower))


@dataclass(frozen=True, kw_only=True)
class Step:
    """One stage for one subject. Rows that need the same step share it."""

    stage: str
    subject: str  # "all-minilm-l6-v2__fp8"
    params: Mapping[str, Any]
    inputs: Mapping[str, Ref]
    toolchain: Mapping[str, str]  # distribution -> version
    code: Mapping[str, str]  # package -> digest of its sources
    exclusive: bool = False  # it measures time: nothing else may run beside it
    worker: str = ""  # the SKU whose worker has this toolchain and code; "": this machine has them

    @property
    def id(self) -> str:
        return f"{self.stage}/{self.subject}"


@dataclass(frozen=True, kw_only=True)
class RowPlan:
    """A row with its steps, or the reason why this machine does not build it.

    Of a row with two engines, `typed` and `engine` stand for both; Ref.of gives the one of a tower.
    """

    row: Row
    refusal: str | None = None
    built_by: WorkerRecord | None = None  # the worker that builds it, and lays out its steps; None: this machine
    typed: Ref | None = None  # the ONNX it is compiled from
    shards: Ref | None = None  # of a row that spans GPUs: the first rank's graph; no engine is compiled of these yet
    engine: Ref | None = None
    metrics: Ref | None = None
    verdict: Ref | None = None


@dataclass(frozen=True, kw_only=True)
class Graph:
    """Every step of a selection of rows, each after the steps it takes from."""

    matrix: Matrix
    steps: Mapping[str, Step]
    rows: tuple[RowPlan, ...]

    @property
    def models(self) -> tuple[Model, ...]:
        return tuple({plan.row.model.name: plan.row.model for plan in self.rows}.values())

    def of(self, model: Model) -> tuple[RowPlan, ...]:
        return tuple(plan for plan in self.rows if plan.row.model.name == model.name)

    def closure(self, step_ids: Iterable[str]) -> Graph:
        """The same graph with only these steps and what they take from."""
        closure: set[str] = set()

        def visit(step_id: str) -> None:
            if step_id not in closure:
                closure.add(step_id)
                for ref in self.steps[step_id].inputs.values():
                    visit(ref.step)

        for step_id in step_ids:
            visit(step_id)
        steps = {step_id: step for step_id, step in self.steps.items() if step_id in closure}
        return Graph(matrix=self.matrix, steps=steps, rows=self.rows)
