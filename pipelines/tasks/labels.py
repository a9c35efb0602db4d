"""How a report names a task's figures, and where metrics.json has them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from pipelines.gate.rules import figure

Metrics = Mapping[str, Any]  # metrics.json; empty where nothing was measured
Text = Callable[[float | None], str]


@dataclass(frozen=True, kw_only=True)
class Column:
    """One figure of every row."""

    title: str  # "Cosine mean": a space is where it may break
    figure: str  # where metrics.json has it: "cosine.mean"
    text: Text
    check: str = ""  # the gate's check that judges it

    def of(self, metrics: Metrics) -> str:
        return self.text(figure(metrics, self.figure))


@dataclass(frozen=True, kw_only=True)
class Labelled:
    """The set with known answers that every row was judged on."""

    name: str  # "stdlib-docstrings" or "pictures"
    num_items: int  # queries, or images
    num_choices: int  # passages to choose from, or classes
    reference: float  # the fp32 reference's figure
    baseline: float | None = None  # the figure without the model: BM25 alone, or chance
    baseline_name: str = ""  # "BM25"


@dataclass(frozen=True, kw_only=True)
class Labels:
    """A task in a report."""

    lead: str  # over the table of rows
    columns: tuple[Column, ...]
    loss: str  # on the axis of the plots: "1 − mean cosine"
    loss_of: Callable[[Metrics], float | None]
    loss_of_one: str  # on the axis of the histograms
    losses: Callable[[Metrics], tuple[float, ...]]  # one for each golden answer
    values: str  # what a loss is of: "golden text"
    num_golden: Callable[[Metrics], int]
    golden: str  # what these are: "golden texts"; {num_golden_pictures} may stand in it
    saturated: Mapping[str, str]  # tower -> what its items per second are of
    single: Mapping[str, str]  # tower -> what one item is
    judged_by: str  # the heading over the labelled set: "What ranking finds"
    labelled: Callable[[Metrics], Labelled | None]
    labelled_text: str  # a sentence with {name}, {num_items} and {num_choices}
    score: str  # where metrics.json has the labelled set's figure: "retrieval.ndcg_at_10"
    score_text: Text
    reference_text: str  # under the reference's figure, with {num_items} and {num_choices}
    baseline_text: str = ""  # under the baseline's figure; "": it is not shown


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


def signed_text(value: float | None) -> str:
    return figure_text(value, 4, True)


def error_text(value: float | None) -> str:
    """Two digits that count: of errors, which span decades."""
    if value is None:
        return "–"
    return f"{value:.2g}" if value else "0"


def share_text(value: float | None, sign: bool = False) -> str:
    """0.9481 -> "94.8 %"; with a sign, points of a hundred."""
    return "–" if value is None else f"{figure_text(100 * value, 2 if sign else 1, sign)} %"


LEAD = (
    " Where an engine cannot run here, the typed ONNX it was compiled from was judged, and the server proves the "
    "engine when it starts."
)
COSINE_LOSS = "1 − mean cosine"
COSINE_LOSS_OF_ONE = "1 − cosine to the fp32 reference"
COSINE_MEAN = Column(title="Cosine mean", figure="cosine.mean", text=cosine_text, check="cosine_mean")
COSINE_P1 = Column(title="Cosine p1", figure="cosine.p1", text=cosine_text, check="cosine_p1")
INVARIANCE = Column(
    title="Batch invariance", figure="batch_invariance.min_cosine", text=cosine_text, check="batch_invariance"
)
NDCG = (
    Column(title="nDCG @10", figure="retrieval.ndcg_at_10", text=figure_text),
    Column(title="nDCG drop", figure="retrieval.drop", text=signed_text, check="ndcg_drop"),
)


def cosine_loss(metrics: Metrics) -> float | None:
    mean = figure(metrics, "cosine.mean")
    return None if mean is None else 1 - mean


def cosine_losses(metrics: Metrics) -> tuple[float, ...]:
    return tuple(1 - value for value in metrics.get("cosine", {}).get("values", ()))


def retrieval_set(metrics: Metrics) -> Labelled | None:
    retrieval = metrics.get("retrieval")
    if retrieval is None:
        return None
    return Labelled(
        name=retrieval["set"],
        num_items=retrieval["num_queries"],
        num_choices=retrieval["num_passages"],
        reference=retrieval["reference_ndcg_at_10"],
        baseline=retrieval.get("first_stage_ndcg_at_10"),
        baseline_name={"bm25": "BM25"}.get(retrieval.get("first_stage", ""), ""),
    )
