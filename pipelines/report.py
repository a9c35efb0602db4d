"""Show a person what was built and how it was judged: one HTML file that needs nothing else."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

State = Literal["passed", "failed", "skipped", "broken"]


@dataclass(frozen=True, kw_only=True)
class CheckLine:
    """One check of a verdict, in the gate's words."""

    name: str  # "cosine_mean"
    value: float | None
    threshold: float | None
    passed: bool | None  # None: not judged
    why: str
    remedy: str = ""


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
    judged_on: str = ""  # "engine" or "typed-onnx"
    judged_with: str = ""  # "onnxruntime 1.31.1"
    cosine_mean: float | None = None
    cosine_p1: float | None = None
    cosine_min: float | None = None
    cosine_values: tuple[float, ...] = ()  # one for each golden text
    ndcg_at_10: float | None = None
    ndcg_drop: float | None = None
    batch_invariance: float | None = None
    items_per_s: float | None = None  # None: its engine does not run on this machine
    latency_s: float | None = None
    throughput_ratio: float | None = None  # over the rung above
    checks: tuple[CheckLine, ...] = ()
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
class ReportModel:
    """Everything the report shows of one model."""

    model: str
    task: str
    release: str
    source: str
    num_texts: int  # golden texts
    num_queries: int  # of the retrieval set
    reference_ndcg_at_10: float | None
    rows: tuple[ReportRow, ...]
    stages: tuple[StageLine, ...] = ()
    images: tuple[ImageLine, ...] = ()
    toolchain: Mapping[str, str] = field(default_factory=dict)  # {"onnxruntime": "1.31.1"}
    machine: Mapping[str, str] = field(default_factory=dict)  # {"CPU": "AMD EPYC …", "GPU": "none"}
    digests: Mapping[str, str] = field(default_factory=dict)  # {"model_manifest.yaml": "sha256:…"}
    date: str = ""  # as it shall be printed; empty keeps the file the same from day to day

    def of_state(self, *states: State) -> tuple[ReportRow, ...]:
        return tuple(row for row in self.rows if row.state in states)


def render(model: ReportModel) -> str:
    """The whole page, plots included: it loads nothing and runs no script."""
    import jinja2

    from pipelines import report_plots

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(size=size_text, seconds=seconds_text, cosine=cosine_text, figure=figure_text)
    return environment.get_template("report.html.j2").render(
        model=model,
        summary=summary(model),
        shared=shared(model),
        verdicts=verdicts(model),
        tradeoff=report_plots.tradeoff(model.rows),
        distribution=report_plots.distribution(model.rows),
    )


def summary(model: ReportModel) -> str:
    """The report in a sentence or two."""
    passed, failed = model.of_state("passed"), model.of_state("failed", "broken")
    skipped = model.of_state("skipped")
    parts = [
        f"{_count(len(passed), 'profile')} of {_count(len(model.rows), 'planned row')} passed the gate and may ship"
    ]
    if failed:
        lost = ", ".join(dict.fromkeys(row.precision for row in failed))
        parts.append(f"{len(failed)} did not pass ({lost}) and {'is' if len(failed) == 1 else 'are'} left out")
    if skipped:
        parts.append(
            f"{len(skipped)} {'needs' if len(skipped) == 1 else 'need'} hardware or a compiler that is not here"
        )
    return "; ".join(parts) + "."


def shared(model: ReportModel) -> str:
    """What the rows had in common: "1 export and 3 quantizations served 40 rows, which share 14 engines"."""
    steps = {stage.stage: stage.num_steps for stage in model.stages}
    built = [row for row in model.rows if row.state != "skipped"]
    engines = {row.engine_digest for row in built if row.engine_digest}
    made = [
        _count(steps[stage], noun)
        for stage, noun in (("export", "export"), ("quantize", "quantization"), ("compile", "compilation"))
        if steps.get(stage)
    ]
    if not made or not built:
        return ""
    text = ", ".join(made[:-1]) + (" and " if len(made) > 1 else "") + made[-1]
    ending = f", which share {_count(len(engines), 'engine file')}" if 0 < len(engines) < len(built) else ""
    return f"{text} served {_count(len(built), 'row')}{ending}."


def verdicts(model: ReportModel) -> list[tuple[tuple[ReportRow, ...], tuple[CheckLine, ...]]]:
    """Each distinct set of checks once, with the rows that it judged: rows of one typed ONNX are judged alike."""
    groups: dict[tuple[str, str, tuple[CheckLine, ...]], list[ReportRow]] = {}
    for row in model.rows:
        if row.checks:
            groups.setdefault((row.precision, row.judged_on, row.checks), []).append(row)
    return [(tuple(rows), checks) for (_, _, checks), rows in groups.items()]


def size_text(size_bytes: int | None) -> str:
    if size_bytes is None:
        return "–"
    for unit, factor in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if size_bytes >= factor:
            return f"{size_bytes / factor:.1f} {unit}"
    return f"{size_bytes} B"


def seconds_text(seconds: float | None) -> str:
    if seconds is None:
        return "–"
    if seconds < 0.1:
        return f"{seconds * 1e3:.1f} ms"
    return f"{seconds:.1f} s" if seconds < 120 else f"{seconds / 60:.1f} min"


def cosine_text(value: float | None) -> str:
    """Six digits, and never a 1 that is not one."""
    if value is None:
        return "–"
    return "1" if value >= 1 else f"{min(value, 0.999999):.6f}"


def figure_text(value: float | None, digits: int = 4, sign: bool = False) -> str:
    if value is None:
        return "–"
    text = f"{value:+.{digits}f}" if sign else f"{value:.{digits}f}"
    return text.replace("-", "−") if float(text) else f"{0:.{digits}f}"


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"
