"""Turn rows into the steps that build and judge them: the only module that knows which stage takes what from which."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, replace
from typing import Any

from pipelines.matrix.compilers import COMPILERS
from pipelines.matrix.values import Matrix, Model, Row, Worker, baseline_row, refusal_here
from pipelines.plan.graph import Graph, Ref, RowPlan, Step
from pipelines.plan.sources import Sources
from pipelines.plan.workers import WorkerRecord, has_gpu, spec_here
from serving.contract.profile import Precision
from serving.tasks.base import suffixed
from serving.tasks.table import TASKS


def graph(
    matrix: Matrix,
    rows: Iterable[Row],
    worker: Worker,
    elsewhere: Mapping[str, WorkerRecord] | None = None,
    sources: Sources | None = None,
) -> Graph:
    """Lay out the steps of these rows for this worker; of the rows `elsewhere`, by name, as other workers do it.

    sources: the matrix's files, where they were read before.
    """
    layout = _Layout(matrix, worker, sources or Sources(matrix))
    plans = []
    for row in rows:
        built_by = (elsewhere or {}).get(row.name)
        refusal = None if built_by else refusal_here(row, worker)
        if row.tp > 1:
            plans.append(layout.sharded(row))
        elif refusal is not None:
            plans.append(RowPlan(row=row, refusal=refusal))
        else:
            plans.append(layout.row(row, built_by))
    return Graph(matrix=matrix, steps=layout.steps, rows=tuple(plans))


class _Layout:
    """Collects steps, each once. A step is added after those it takes from."""

    def __init__(self, matrix: Matrix, worker: Worker, sources: Sources) -> None:
        self.matrix, self.worker, self.sources = matrix, worker, sources
        self.steps: dict[str, Step] = {}
        self.base = str(matrix.source.parent.absolute())
        self.ours = spec_here(worker)

    def add(
        self,
        stage: str,
        subject: str,
        params: Mapping[str, Any],
        inputs: Mapping[str, Ref],
        *,
        part: str = "",
        row: Row | None = None,
        built_by: WorkerRecord | None = None,
        exclusive: bool = False,
    ) -> str:
        """part: of the toolchain, where it is not the stage's own. row: whose step it is, if a worker may build it."""
        builder = self.ours if built_by is None else built_by.spec
        toolchain, code = builder.versions_of(part or stage), builder.code_of(stage)
        same = (toolchain, code) == (self.ours.versions_of(part or stage), self.ours.code_of(stage))
        worker = "" if same or row is None else row.sku.name
        step = Step(
            stage=stage,
            subject=subject,
            params=params,
            inputs=inputs,
            toolchain=toolchain,
            code=code,
            exclusive=exclusive,
            worker=worker,
        )
        same_id = self.steps.get(step.id)
        if same_id is not None and same_id.worker != worker and replace(same_id, worker=worker) != step:
            # Two workers make one output of different inputs: each has a step of its own. Only their ids differ.
            step = replace(step, subject=f"{subject}@{worker or 'here'}")
        return self.steps.setdefault(step.id, step).id

    def row(self, row: Row, built_by: WorkerRecord | None) -> RowPlan:
        engine, typed, metrics = self.engine(row, built_by), self.typed(row), self.metrics(row, built_by)
        judge = self.add(
            "judge",
            row.name,
            {
                "row": row.name,
                "evaluated": self.steps[metrics.step].params["evaluated"],
                "thresholds": asdict(self.matrix.gates[row.model.task][row.precision]),
            },
            {"metrics.json": metrics, **self.towers(row.model, "engine", engine)},
            row=row,
            built_by=built_by,
        )
        return RowPlan(
            row=row,
            built_by=built_by,
            typed=typed,
            engine=engine,
            metrics=metrics,
            verdict=Ref(step=judge, output="verdict.json"),
        )

    def sharded(self, row: Row) -> RowPlan:
        """A row that spans GPUs. The graph of each rank is made and proved; no engine is compiled of it yet."""
        typed = self.typed(row)
        step = self.add(
            "shard",
            f"{row.model.name}__{row.precision}__tp{row.tp}",
            {"task": row.model.task, "precision": str(row.precision), "tp": row.tp},
            self.towers(row.model, "model.onnx", typed),
        )
        refusal = refusal_here(row, self.worker) or f"no engine is made of {row.tp} shards yet, and no server runs one"
        return RowPlan(row=row, refusal=refusal, typed=typed, shards=Ref(step=step, output="rank0.onnx"))

    def towers(self, model: Model, name: str, ref: Ref) -> dict[str, Ref]:
        """An output of every tower as a step's inputs: {"engine.text": …, "engine.image": …}."""
        return {suffixed(name, tower): ref.of(tower) for tower in TASKS[model.task].towers}

    def pictures(self, model: Model) -> dict[str, Any]:
        """The parameters of a step that reads the model's pictures; none for other tasks."""
        if model.pictures is None:
            return {}
        return {
            "pictures": model.pictures,
            "pictures_digest": self.sources.pictures(model),
            "source_base": self.base,
        }

    def texts(self) -> Ref:
        step = self.add("texts", "stdlib", {}, {})
        return Ref(step=step, output="texts.json")

    def exported(self, model: Model, name: str) -> Ref:
        params = {
            "model": model.name,
            "task": model.task,
            "source": model.source,
            "source_base": self.base,
            "source_digest": self.sources.revision(model),
            "served_name": model.served_name,
            "release": model.release,
            "max_tokens": model.max_tokens,
            "shapes": asdict(model.shapes),
            "golden": asdict(model.golden),
            "matryoshka": model.matryoshka,
            **self.pictures(model),
        }
        step = self.add("export", model.name, params, {"texts.json": self.texts()})
        return Ref(step=step, output=name)

    def onnx(self, model: Model, precision: Precision, kind: str) -> Ref:
        """The typed ONNX of a precision, for CPUs or GPUs. The typed ONNX of fp32 is the export itself."""
        if precision is Precision.FP32:
            return self.exported(model, "model.onnx")
        # TensorRT's int8 is symmetric. A CPU computes with zero points, which loses less.
        zero_points = precision is Precision.INT8 and kind == "cpu"
        step = self.add(
            "quantize",
            f"{model.name}__{precision}{'__cpu' if zero_points else ''}",
            {
                "task": model.task,
                "precision": str(precision),
                "zero_points": zero_points,
                **asdict(model.calibration),
                **self.pictures(model),
            },
            {
                **self.towers(model, "model.onnx", self.exported(model, "model.onnx")),
                "tokenizer.json": self.exported(model, "tokenizer.json"),
                "task.json": self.exported(model, "task.json"),
                "texts.json": self.texts(),
            },
        )
        return Ref(step=step, output="model.onnx")

    def typed(self, row: Row) -> Ref:
        # OpenVINO converts to bf16 itself: better and faster than a graph with casts (docs/adr/0003).
        itself = row.sku.compiler == "openvino" and row.precision is Precision.BF16
        return self.onnx(row.model, Precision.FP32 if itself else row.precision, row.sku.kind)

    def engine(self, row: Row, built_by: WorkerRecord | None) -> Ref:
        params: dict[str, Any] = {
            "task": row.model.task,
            "compiler": row.sku.compiler,
            "precision": str(row.precision),
            "shapes": asdict(row.model.shapes),
            "tp": row.tp,
        }
        if row.sku.compute_capability is not None:
            params["compute_capability"] = row.sku.compute_capability
        if row.sku.compiler == "openvino":
            params["cpu_isa"] = row.sku.cpu_isa
        step = self.add(
            "compile",
            f"{row.model.name}__{row.precision}__{row.sku.target}__tp{row.tp}",
            params,
            self.towers(row.model, "model.onnx", self.typed(row)),
            part=row.sku.compiler,
            row=row,
            built_by=built_by,
        )
        return Ref(step=step, output="engine")

    def labelled(self, model: Model) -> dict[str, Any]:
        """The labelled set that judges, by content."""
        if model.pictures is not None:
            return {"task": model.task, **self.pictures(model)}
        return {
            "task": model.task,
            "retrieval": model.retrieval,
            "retrieval_digest": self.sources.retrieval(model),
            "source_base": self.base,
        }

    def files(self, model: Model, *names: str) -> dict[str, Ref]:
        return {name: self.exported(model, name) for name in names}

    def reference(self, model: Model) -> Ref:
        """The fp32 reference's answers on the labelled set: measured once for all rows."""
        step = self.add(
            "measure",
            f"{model.name}__reference",
            {
                **self.labelled(model),
                "evaluated": "reference",
                "backend": "onnxruntime",
                "precision": str(Precision.FP32),
            },
            {
                **self.towers(model, "fp32.onnx", self.exported(model, "model.onnx")),
                **self.files(model, "tokenizer.json", "task.json"),
                "texts.json": self.texts(),
            },
        )
        return Ref(step=step, output="reference.json")

    def metrics(self, row: Row, built_by: WorkerRecord | None) -> Ref:
        """Measured on the engine, if it runs here; else on the typed ONNX, which all SKUs of a precision share."""
        builder = self.ours if built_by is None else built_by.spec
        on_gpu = has_gpu(row, builder.worker)
        runs_here = row.sku.kind == "cpu" or on_gpu
        inputs = {
            **self.towers(row.model, "engine", self.engine(row, built_by) if runs_here else self.typed(row)),
            **self.files(row.model, "tokenizer.json", "task.json", "golden.json"),
            "texts.json": self.texts(),
            "reference.json": self.reference(row.model),
        }
        params: dict[str, Any] = {
            **self.labelled(row.model),
            "precision": str(row.precision),
            "evaluated": "engine" if runs_here else "typed-onnx",
            "backend": COMPILERS[row.sku.compiler].backend if runs_here else "onnxruntime",
            "cpu_isa": row.sku.cpu_isa,
            "speed": runs_here,
        }
        if runs_here:
            params["machine"] = row.sku.name if on_gpu else builder.cpu_model
            if on_gpu:  # a GPU engine does not tell the formats of its layers
                inputs |= self.towers(row.model, "typed.onnx", self.typed(row))
            baseline = baseline_row(row, self.matrix.rows)
            if baseline is not None:
                inputs |= self.towers(row.model, "baseline", self.engine(baseline, built_by))
                params["baseline"] = {
                    "backend": COMPILERS[baseline.sku.compiler].backend,
                    "precision": str(baseline.precision),
                    "cpu_isa": baseline.sku.cpu_isa,
                }
        place = f"{row.sku.name}__tp{row.tp}" if on_gpu else row.sku.target if runs_here else "typed-onnx"
        step = self.add(
            "measure",
            f"{row.model.name}__{row.precision}__{place}",
            params,
            inputs,
            row=row,
            built_by=built_by,
            exclusive=runs_here,
        )
        return Ref(step=step, output="metrics.json")
