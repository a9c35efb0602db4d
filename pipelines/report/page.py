"""Show a person what was built and how it was judged: one HTML file that needs nothing else."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path

from pipelines.gate.rules import figure
from pipelines.gate.verdict import Check
from pipelines.report.model import ReportModel, ReportRow
from pipelines.report.style import template
from pipelines.tasks.labels import figure_text
from pipelines.tasks.table import TASKS


def render(model: ReportModel) -> str:
    """The whole page, plots included: it loads nothing and runs no script."""
    from pipelines.report import plots

    labels = TASKS[model.task].labels
    page = template(Path(__file__).with_name("page.html.j2"), size=size_text, seconds=seconds_text, figure=figure_text)
    return page.render(
        model=model,
        summary=summary(model),
        shared=shared(model),
        verdicts=verdicts(model),
        labels=labels,
        tiles=tiles(model),
        bars=bars(model),
        judged_on_set=labels.labelled_text.format(**asdict(model.labelled)) if model.labelled else "",
        tradeoff=plots.tradeoff(model.rows, labels),
        distribution=plots.distribution(model.rows, labels),
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


def tiles(model: ReportModel) -> tuple[tuple[str, str], ...]:
    """The sets that rows were judged with: (figure, its label), at most three."""
    labels, labelled = TASKS[model.task].labels, model.labelled
    tiles = [(f"{model.num_golden}", labels.golden.format(num_golden_pictures=model.num_golden_pictures))]
    if labelled is not None:
        tiles.append((labels.score_text(labelled.reference), labels.reference_text.format(**asdict(labelled))))
        if labels.baseline_text and labelled.baseline is not None:
            tiles.append((labels.score_text(labelled.baseline), labels.baseline_text))
    return tuple(tiles)


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
    labelled, labels = model.labelled, TASKS[model.task].labels
    if labelled is None:
        return ()
    lines: list[tuple[str, str, str, float]] = []
    if labelled.baseline is not None:
        lines.append((labelled.baseline_name, "without the model", "", labelled.baseline))
    lines.append(("fp32 reference", "PyTorch's weights, as exported", "", labelled.reference))
    groups: dict[tuple[str, str, float], list[str]] = {}
    for row in model.rows:
        score = figure(row.metrics, labels.score)
        if score is not None:
            groups.setdefault((row.precision, row.evaluated, score), []).append(row.sku)
    for (precision, evaluated, score), skus in groups.items():
        name = skus[0] if len(skus) == 1 else f"{len(skus)} rows"
        lines.append((name, evaluated.replace("typed-onnx", "typed ONNX"), precision, score))
    return tuple(
        Bar(
            name=name,
            note=note,
            precision=precision,
            value=value,
            text=labels.score_text(value),
            percent=round(100 * value, 2),
        )
        for name, note, precision, value in lines
    )


def verdicts(model: ReportModel) -> list[tuple[tuple[ReportRow, ...], tuple[Check, ...]]]:
    """Each distinct set of checks once, with the rows that it judged: rows of one typed ONNX are judged alike."""
    groups: dict[tuple[str, str, tuple[Check, ...]], list[ReportRow]] = {}
    for row in model.rows:
        if row.checks:
            groups.setdefault((row.precision, row.evaluated, row.checks), []).append(row)
    return [(tuple(rows), checks) for (_, _, checks), rows in groups.items()]


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


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
