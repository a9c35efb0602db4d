"""What a report says differently of each task: its columns, its tiles, what its axes and speeds mean."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pipelines.report.model import Labelled, ReportModel, ReportRow


@dataclass(frozen=True, kw_only=True)
class Column:
    """One figure of every row."""

    title: str  # "Cosine<br>mean", but as two words: a space is where it may break
    text: Callable[[ReportRow], str]
    check: str = ""  # the gate's check that judges it


@dataclass(frozen=True, kw_only=True)
class TaskLabels:
    """A task in a report."""

    lead: str  # over the table of rows
    columns: tuple[Column, ...]
    loss: str  # on the axis of the plots: "1 − mean cosine"
    loss_of: Callable[[ReportRow], float | None]
    loss_of_one: str  # on the axis of the histograms
    values: str  # of what they are: "golden text"
    saturated: Mapping[str, str]  # tower -> what its items per second are of
    single: Mapping[str, str]  # tower -> what one item is
    judged_by: str  # the heading over the labelled set: "What ranking finds"


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


def error_text(value: float | None) -> str:
    """Two digits that count: of errors, which span decades."""
    if value is None:
        return "–"
    return f"{value:.2g}" if value else "0"


def share_text(value: float | None, sign: bool = False) -> str:
    """0.9481 -> "94.8 %"; with a sign, points of a hundred."""
    return "–" if value is None else f"{figure_text(100 * value, 2 if sign else 1, sign)} %"


_LEAD = (
    " Where an engine cannot run here, the typed ONNX it was compiled from was judged, and the server proves the "
    "engine when it starts."
)
_INVARIANCE = Column(
    title="Batch invariance", text=lambda row: cosine_text(row.batch_invariance), check="batch_invariance"
)
_COSINE_MEAN = Column(title="Cosine mean", text=lambda row: cosine_text(row.cosine_mean), check="cosine_mean")
_COSINE_P1 = Column(title="Cosine p1", text=lambda row: cosine_text(row.cosine_p1), check="cosine_p1")
_NDCG = (
    Column(title="nDCG @10", text=lambda row: figure_text(row.quality)),
    Column(title="nDCG drop", text=lambda row: figure_text(row.drop, 4, True), check="ndcg_drop"),
)


def _cosine_loss(row: ReportRow) -> float | None:
    return None if row.cosine_mean is None else 1 - row.cosine_mean


TASK_LABELS: Mapping[str, TaskLabels] = {
    "embed": TaskLabels(
        lead="Cosine is to the fp32 reference, over all golden texts." + _LEAD,
        columns=(
            _COSINE_MEAN,
            _COSINE_P1,
            Column(title="Cosine min", text=lambda row: cosine_text(row.cosine_min), check="cosine_min"),
            *_NDCG,
            _INVARIANCE,
        ),
        loss="1 − mean cosine",
        loss_of=_cosine_loss,
        loss_of_one="1 − cosine to the fp32 reference",
        values="golden text",
        saturated={"model": "32 × 128 tokens"},
        single={"model": "one query, 20 tokens"},
        judged_by="What retrieval finds",
    ),
    "rerank": TaskLabels(
        lead="Logits are held against those of the fp32 reference, over all golden pairs." + _LEAD,
        columns=(
            Column(title="Kendall τ", text=lambda row: figure_text(row.kendall_tau, 5), check="kendall_tau"),
            Column(title="Logit error mean", text=lambda row: error_text(row.score_error_mean)),
            Column(title="Logit error max", text=lambda row: error_text(row.score_error_max), check="score_error"),
            *_NDCG,
            Column(title="Batch Δ logit", text=lambda row: error_text(row.batch_invariance), check="batch_invariance"),
        ),
        loss="mean error of a logit",
        loss_of=lambda row: row.score_error_mean,
        loss_of_one="error of a logit",
        values="golden pair",
        saturated={"model": "32 × 128 tokens"},
        single={"model": "one pair, 20 tokens"},
        judged_by="What ranking finds",
    ),
    "clip": TaskLabels(
        lead="Cosine is to the fp32 reference, over all golden texts and pictures; a profile is two engines." + _LEAD,
        columns=(
            _COSINE_MEAN,
            _COSINE_P1,
            Column(title="Cosine min, texts", text=lambda row: cosine_text(row.text_cosine_min), check="cosine_min"),
            Column(
                title="Cosine min, pictures", text=lambda row: cosine_text(row.image_cosine_min), check="cosine_min"
            ),
            Column(title="Zero-shot top-1", text=lambda row: share_text(row.quality)),
            Column(title="Top-1 drop", text=lambda row: share_text(row.drop, True), check="top1_drop"),
            _INVARIANCE,
        ),
        loss="1 − mean cosine",
        loss_of=_cosine_loss,
        loss_of_one="1 − cosine to the fp32 reference",
        values="golden text or picture",
        saturated={"text": "32 texts at once", "image": "8 pictures at once"},
        single={"text": "one text", "image": "one picture"},
        judged_by="What zero-shot classification finds",
    ),
}


def tiles(model: ReportModel) -> tuple[tuple[str, str], ...]:
    """What was judged with: (figure, what it is), at most three."""
    labelled = model.labelled
    golden = {
        "embed": "golden texts",
        "rerank": "golden pairs",
        "clip": f"golden texts, and {model.num_golden_pictures} golden pictures",
    }[model.task]
    parts = [(f"{model.num_golden}", golden)]
    if labelled is not None and model.task == "clip":
        parts.append(
            (
                share_text(labelled.reference),
                f"reference zero-shot top-1, {labelled.num_items} pictures of {labelled.num_choices} classes",
            )
        )
    elif labelled is not None:
        parts.append((figure_text(labelled.reference), f"reference nDCG@10, {labelled.num_items} queries"))
    if labelled is not None and labelled.baseline is not None and model.task == "rerank":
        parts.append((figure_text(labelled.baseline), "nDCG@10 of BM25, before ranking"))
    return tuple(parts)


def judged_on_set(task: str, labelled: Labelled | None) -> str:
    """The labelled set and its figure, in a sentence."""
    if labelled is None:
        return ""
    name, items, choices = labelled.name, labelled.num_items, labelled.num_choices
    return {
        "embed": f"nDCG@10 on {name}: {items} queries, each against {choices} passages.",
        "rerank": f"nDCG@10 on {name}: {items} queries; what BM25 finds among {choices} passages is ranked anew.",
        "clip": f"The share of {items} test pictures ({name}) that lie nearest to their own of {choices} captions.",
    }[task]
