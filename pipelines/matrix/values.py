"""What sku_matrix.yaml says, as values: models, SKUs and rows; and what a building machine is."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from pipelines.gate.thresholds import Thresholds
from pipelines.matrix.compilers import COMPILERS
from serving.contract.profile import Precision, ShapeRange

# The feature that makes a CPU SKU, and oneDNN's name for the instruction set that has it. The best one first.
CPU_ISA = {"amx_bf16": "AVX512_CORE_AMX", "avx512_bf16": "AVX512_CORE_BF16", "avx2": "AVX2"}


@dataclass(frozen=True, kw_only=True)
class Sku:
    """A hardware kind as sold."""

    name: str  # "l40s"
    kind: str  # "gpu" or "cpu"
    compiler: str  # "tensorrt-rtx", "tensorrt", "openvino" or "onnx"
    precisions: tuple[Precision, ...]
    compute_capability: str | None  # "8.9"; None for a CPU
    pci_ids: tuple[str, ...]  # ("26b9",); empty for a CPU
    product: str | None  # "l40s": part of the lower-cased node label nvidia.com/gpu.product
    memory_gib: float | None  # per GPU, as sold
    gpus_per_node: int  # 0 for a CPU
    cpu_arch: str | None  # "x86_64"; None for a GPU
    cpu_features: tuple[str, ...]  # as Linux names them: ("avx512_bf16",)

    @property
    def cpu_isa(self) -> str | None:
        """The instruction set that its CPU features mean, as oneDNN names it; None for a GPU or any CPU."""
        return next((isa for feature, isa in CPU_ISA.items() if feature in self.cpu_features), None)

    @property
    def target(self) -> str:
        """What the compiler is told of it: "tensorrt-rtx-sm89". SKUs of one target share the engine's bytes."""
        if self.compute_capability is not None:
            return f"{self.compiler}-sm{self.compute_capability.replace('.', '')}"
        if self.compiler == "openvino" and self.cpu_isa is not None:
            return f"openvino-{self.cpu_isa.lower().replace('_', '-')}"
        return self.compiler


@dataclass(frozen=True, kw_only=True)
class Calibration:
    """What the quantizer sees: never a golden text."""

    num_texts: int
    max_tokens: int
    max_nsr: float  # int8 only, the noise-to-signal ratio: the share of the answers' variance that it may disturb


@dataclass(frozen=True, kw_only=True)
class Golden:
    """How many texts the fp32 reference answers for the gate."""

    num_texts: int


@dataclass(frozen=True, kw_only=True)
class Model:
    """What to build engines of."""

    name: str  # "all-minilm-l6-v2"
    task: str  # "embed"
    source: str  # as written: "package://…", "hf://…", "s3://…" or a folder relative to the matrix
    release: str  # "0.1.0"
    served_name: str  # the `model` that a request names
    max_tokens: int | None  # special tokens included; None: what the model says of itself
    shapes: ShapeRange
    calibration: Calibration
    golden: Golden
    retrieval: str  # "stdlib-docstrings" or "beir:FOLDER"; of tasks that read texts
    pictures: str | None  # clip: the folder of its labelled pictures, relative to the matrix
    matryoshka: bool | None  # embed: whether shorter vectors may be asked for; None: what the model says of itself
    runtimes: tuple[str, ...]  # ("rtx", "cpu"): one image each; the rtx one has the tag without a suffix


@dataclass(frozen=True, kw_only=True)
class RowName:
    """A row's name, taken apart. Its one spelling, everywhere: "all-minilm-l6-v2__l40s__fp8__tp1"."""

    model: str
    sku: str
    precision: Precision
    tp: int

    @classmethod
    def parse(cls, text: str) -> RowName | None:
        """The parts of a name; None for a text that names no row. `parse(str(name)) == name` holds for every name."""
        parts = _ROW_NAME.fullmatch(text)
        if parts is None:
            return None
        model, sku, precision, tp = parts.groups()
        return cls(model=model, sku=sku, precision=Precision(precision), tp=int(tp))

    @property
    def cell(self) -> str:
        """The name within its model: "l40s__fp8__tp1"."""
        return f"{self.sku}__{self.precision}__tp{self.tp}"

    def __str__(self) -> str:
        return f"{self.model}__{self.cell}"


_ROW_NAME = re.compile(rf"([a-z0-9.-]+)__([a-z0-9.-]+)__({'|'.join(Precision)})__tp([1-9][0-9]*)")


@dataclass(frozen=True, kw_only=True)
class Row:
    """A cell of the matrix: what to build."""

    model: Model
    sku: Sku
    precision: Precision
    tp: int

    @property
    def name(self) -> str:
        return str(RowName(model=self.model.name, sku=self.sku.name, precision=self.precision, tp=self.tp))


def baseline_row(row: Row, rows: Iterable[Row]) -> Row | None:
    """What a row is timed against: the next higher precision of its SKU; for a CPU else the generic fp32 row."""
    rows = [r for r in rows if r.model.name == row.model.name and r.tp == row.tp]
    same_sku = [r for r in rows if r.sku.name == row.sku.name and r.precision.bits > row.precision.bits]
    of_any_cpu = [r for r in rows if r.sku.compiler == "onnx" and r.precision is Precision.FP32 and r is not row]
    generic = of_any_cpu if row.sku.kind == "cpu" else []
    return next(iter(sorted(same_sku, key=lambda r: r.precision.bits) or generic), None)


@dataclass(frozen=True, kw_only=True)
class Matrix:
    """The whole file, checked: every row in it can exist somewhere."""

    source: Path
    models: Mapping[str, Model]  # in the file's order
    skus: Mapping[str, Sku]  # in the file's order
    rows: tuple[Row, ...]  # by model, SKU (both in the file's order), precision, tp
    gates: Mapping[str, Mapping[Precision, Thresholds]]  # complete: defaults under what the file says
    notes: tuple[str, ...] = ()  # what is right, and will be refused one day: old names of keys

    def folder(self, reference: str) -> Path:
        """A path the file gives (a source, a retrieval set), from the file's own folder."""
        return self.source.parent / reference


@dataclass(frozen=True, kw_only=True)
class Worker:
    """What a building machine has: everything that `refusal_here` may ask about."""

    cpu_arch: str  # "x86_64"
    cpu_features: frozenset[str]  # flags as Linux names them
    compilers: frozenset[str]  # importable here: {"tensorrt-rtx", "openvino", "onnx"}
    gpu_pci_ids: tuple[str, ...] = ()  # one per GPU: ("2330", "2330")


def refusal_here(row: Row, worker: Worker) -> str | None:
    """Why this machine cannot build the row; None when it can."""
    sku = row.sku
    if COMPILERS[sku.compiler].needs_gpu or row.tp > 1:  # tunes on the GPU, or needs several of the very SKU at once
        num_gpus = sum(pci_id in sku.pci_ids for pci_id in worker.gpu_pci_ids)
        if num_gpus < row.tp:
            count = f" ({row.tp} GPUs, {num_gpus} here)" if row.tp > 1 else ""
            return f"needs a worker with {sku.name}{count}"
    if sku.compiler == "openvino":  # compiles for the instructions it can execute, or fewer
        if sku.cpu_arch != worker.cpu_arch:
            return f"needs a worker with {sku.name} (a CPU of {sku.cpu_arch}, this one is {worker.cpu_arch})"
        lacking = [feature for feature in sku.cpu_features if feature not in worker.cpu_features]
        if lacking:
            return f"needs a worker with {sku.name} (this CPU lacks {', '.join(lacking)})"
    if sku.compiler not in worker.compilers:
        extra = COMPILERS[sku.compiler].extra
        return f"needs the compiler {sku.compiler}, which cannot be imported here; install enginery[{extra}]"
    return None
