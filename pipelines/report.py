"""Show a person what was built and how it was judged: one HTML file that needs nothing else."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from pipelines.report_tasks import WORDS, figure_text, judged_on_set, seconds_text, share_text, size_text, tiles

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
class Speed:
    """How fast one engine is on this machine."""

    tower: str  # "model", or "text" and "image"
    items_per_s: float  # saturated
    latency_s: float  # of one item
    throughput_ratio: float | None = None  # over the rung above


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
    text_cosine_min: float | None = None  # of a row with two engines
    image_cosine_min: float | None = None
    kendall_tau: float | None = None  # of a reranker, whose answers are scores
    score_error_mean: float | None = None
    score_error_max: float | None = None
    losses: tuple[float, ...] = ()  # of each golden text, picture or pair: 1 - cosine, or the error of its logit
    found: float | None = None  # on the labelled set: nDCG@10, or the share of pictures named right
    drop: float | None = None  # of that, against the fp32 reference
    batch_invariance: float | None = None  # a cosine, or a difference of scores
    speeds: tuple[Speed, ...] = ()  # one for each engine; none: they do not run on this machine
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
class Labelled:
    """The set with known answers that every row was judged on."""

    name: str  # "stdlib-docstrings" or "pictures"
    num_items: int  # queries, or pictures
    num_choices: int  # passages to choose from, or classes
    reference: float  # what the fp32 reference finds
    baseline: float | None = None  # what is found without the model: BM25 alone, or chance
    baseline_name: str = ""  # "BM25"


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
    environment.filters.update(size=size_text, seconds=seconds_text, figure=figure_text)
    words = WORDS[model.task]
    return environment.get_template("report.html.j2").render(
        model=model,
        summary=summary(model),
        shared=shared(model),
        verdicts=verdicts(model),
        words=words,
        tiles=tiles(model),
        bars=bars(model),
        judged_on_set=judged_on_set(model.task, model.labelled),
        tradeoff=report_plots.tradeoff(model.rows, words),
        distribution=report_plots.distribution(model.rows, words),
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


@dataclass(frozen=True, kw_only=True)
class Bar:
    """What somebody finds on the labelled set."""

    name: str
    note: str
    precision: str  # "": not an engine
    value: float
    text: str
    percent: float  # its length


def bars(model: ReportModel) -> tuple[Bar, ...]:
    """The baseline, the reference, and each engine; rows that were judged alike share one."""
    labelled = model.labelled
    if labelled is None:
        return ()
    said = share_text if model.task == "clip" else figure_text
    lines: list[tuple[str, str, str, float]] = []
    if labelled.baseline is not None:
        lines.append((labelled.baseline_name, "without the model", "", labelled.baseline))
    lines.append(("fp32 reference", "PyTorch's weights, as exported", "", labelled.reference))
    groups: dict[tuple[str, str, float], list[str]] = {}
    for row in model.rows:
        if row.found is not None:
            groups.setdefault((row.precision, row.judged_on, row.found), []).append(row.sku)
    for (precision, judged_on, found), skus in groups.items():
        name = skus[0] if len(skus) == 1 else f"{len(skus)} rows"
        lines.append((name, judged_on.replace("typed-onnx", "typed ONNX"), precision, found))
    return tuple(
        Bar(name=name, note=note, precision=precision, value=value, text=said(value), percent=round(100 * value, 2))
        for name, note, precision, value in lines
    )


def verdicts(model: ReportModel) -> list[tuple[tuple[ReportRow, ...], tuple[CheckLine, ...]]]:
    """Each distinct set of checks once, with the rows that it judged: rows of one typed ONNX are judged alike."""
    groups: dict[tuple[str, str, tuple[CheckLine, ...]], list[ReportRow]] = {}
    for row in model.rows:
        if row.checks:
            groups.setdefault((row.precision, row.judged_on, row.checks), []).append(row)
    return [(tuple(rows), checks) for (_, _, checks), rows in groups.items()]


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"
