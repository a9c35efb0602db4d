"""What the report shows of one model, as values. Collecting them is `collect`, drawing them is `page`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from pipelines.gate.verdict import Check
from pipelines.tasks.labels import Labelled, Metrics

State = Literal["passed", "failed", "skipped", "broken"]


@dataclass(frozen=True, kw_only=True)
class Speed:
    """How fast one engine is on this machine."""

    tower: str  # "model", or "text" and "image"
    items_per_s: float  # saturated
    latency_s: float  # of one item
    throughput_ratio: float | None = None  # over the baseline


@dataclass(frozen=True, kw_only=True)
class ReportRow:
    """One row of the matrix and what became of it. Figures are None where there are none."""

    row: str  # "all-minilm-l6-v2__l40s__fp8__tp1"
    sku: str
    hardware: str  # "NVIDIA L40S · 8.9" or "x86_64 · avx512_bf16"
    precision: str
    tp: int
    state: State  # "skipped": planned, not built here; "broken": a stage failed, so nothing could be judged
    reason: str = ""  # why it failed, was skipped or broke: "needs a worker with h100-sxm-80gb"
    remedy: str = ""  # what helps
    size_bytes: int | None = None  # of the engine
    build_s: float | None = None  # of its compilation
    evaluated: str = ""  # "engine" or "typed-onnx"
    judged_with: str = ""  # "onnxruntime 1.31.1"
    metrics: Metrics = field(default_factory=dict)  # metrics.json; the task's labels say what of it is shown
    speeds: tuple[Speed, ...] = ()  # one for each engine; none: they do not run on this machine
    checks: tuple[Check, ...] = ()
    engine_digest: str = ""

    @property
    def failed_checks(self) -> frozenset[str]:
        return frozenset(check.name for check in self.checks if check.passed is False)


@dataclass(frozen=True, kw_only=True)
class StageLine:
    """All steps of one stage in this build."""

    stage: str  # "compile"
    num_steps: int
    num_built: int  # now; the others were reused
    num_rows: int  # that needed them
    duration_s: float  # as recorded when they were built, now or earlier
    peak_rss_bytes: int = 0  # of the step that held most memory; 0 where none ran in a process of its own
    steps: tuple[StepLine, ...] = ()


@dataclass(frozen=True, kw_only=True)
class StepLine:
    """What one step took when it was built, now or earlier."""

    subject: str  # "bert-large__fp8"
    duration_s: float
    peak_rss_bytes: int
    size_bytes: int  # of its outputs


@dataclass(frozen=True, kw_only=True)
class Layer:
    """One layer of an image."""

    content: str  # "engines, manifest and golden outputs"
    size_bytes: int
    digest: str = ""


@dataclass(frozen=True, kw_only=True)
class ImageLine:
    """An image, or the reason why there is none."""

    name: str  # "enginery/all-minilm-l6-v2:0.1.0"
    digest: str = ""
    layers: tuple[Layer, ...] = ()
    reason: str = ""  # "no Docker engine was reachable"

    @property
    def size_bytes(self) -> int:
        return sum(layer.size_bytes for layer in self.layers)


@dataclass(frozen=True, kw_only=True)
class Picture:
    """A labelled picture and what a profile makes of it."""

    data: str  # base64 of a PNG file
    caption: str  # its own
    nearest: tuple[tuple[str, float], ...]  # captions with their cosines, nearest first


@dataclass(frozen=True, kw_only=True)
class Gallery:
    """Pictures as the best profile for this machine sees them."""

    row: str
    sku: str
    precision: str
    pictures: tuple[Picture, ...]


@dataclass(frozen=True, kw_only=True)
class ReportModel:
    """Everything the report shows of one model."""

    model: str
    task: str
    release: str
    source: str
    num_golden: int  # texts or pairs
    rows: tuple[ReportRow, ...]
    num_golden_pictures: int = 0
    labelled: Labelled | None = None  # None: nothing was judged
    gallery: Gallery | None = None
    stages: tuple[StageLine, ...] = ()
    images: tuple[ImageLine, ...] = ()
    toolchain: Mapping[str, str] = field(default_factory=dict)  # {"onnxruntime": "1.31.1"}
    machine: Mapping[str, str] = field(default_factory=dict)  # {"CPU": "AMD EPYC …", "GPU": "none"}
    digests: Mapping[str, str] = field(default_factory=dict)  # {"model_manifest.yaml": "sha256:…"}
    date: str = ""  # as it shall be printed; empty keeps the file the same from day to day

    def of_state(self, *states: State) -> tuple[ReportRow, ...]:
        return tuple(row for row in self.rows if row.state in states)
