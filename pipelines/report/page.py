"""Show a person what was built and how it was judged: one HTML file that needs nothing else."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from pipelines.gate.verdict import Check
from pipelines.report.model import ReportModel, ReportRow
from pipelines.report.style import template
from pipelines.report.tasks import TASK_LABELS, figure_text, judged_on_set, seconds_text, share_text, size_text, tiles


def render(model: ReportModel) -> str:
    """The whole page, plots included: it loads nothing and runs no script."""
    from pipelines.report import plots

    labels = TASK_LABELS[model.task]
    page = template(Path(__file__).with_name("page.html.j2"), size=size_text, seconds=seconds_text, figure=figure_text)
    return page.render(
        model=model,
        summary=summary(model),
        shared=shared(model),
        verdicts=verdicts(model),
        labels=labels,
        tiles=tiles(model),
        bars=bars(model),
        judged_on_set=judged_on_set(model.task, model.labelled),
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
    parts = [
        _count(steps[stage], noun)
        for stage, noun in (("export", "export"), ("quantize", "quantization"), ("compile", "compilation"))
        if steps.get(stage)
    ]
    if not parts or not built:
        return ""
    text = ", ".join(parts[:-1]) + (" and " if len(parts) > 1 else "") + parts[-1]
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
    text_of = share_text if model.task == "clip" else figure_text
    lines: list[tuple[str, str, str, float]] = []
    if labelled.baseline is not None:
        lines.append((labelled.baseline_name, "without the model", "", labelled.baseline))
    lines.append(("fp32 reference", "PyTorch's weights, as exported", "", labelled.reference))
    groups: dict[tuple[str, str, float], list[str]] = {}
    for row in model.rows:
        if row.quality is not None:
            groups.setdefault((row.precision, row.evaluated, row.quality), []).append(row.sku)
    for (precision, evaluated, quality), skus in groups.items():
        name = skus[0] if len(skus) == 1 else f"{len(skus)} rows"
        lines.append((name, evaluated.replace("typed-onnx", "typed ONNX"), precision, quality))
    return tuple(
        Bar(name=name, note=note, precision=precision, value=value, text=text_of(value), percent=round(100 * value, 2))
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
