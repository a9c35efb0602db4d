"""What a rule of the gate is: one figure of metrics.json against one threshold. Each task's rules are in `tasks`."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

LOOSER = "calibrate with more or other texts, exclude sensitive layers from quantization, or leave this precision out"


@dataclass(frozen=True, kw_only=True)
class Rule:
    """How one field of Thresholds is judged."""

    name: str  # of the check: "cosine_mean"
    threshold: str  # the field of Thresholds
    value: str  # where metrics.json has it: "cosine.mean"
    label: str  # "mean cosine to the fp32 reference"
    at_least: bool = True
    is_share: bool = True  # the threshold lies between 0 and 1
    remedy: str = LOOSER


@dataclass(frozen=True, kw_only=True)
class Drop:
    """How an engine's loss on the labelled set is judged, against the reference on the same set."""

    name: str
    threshold: str
    section: str  # of metrics.json, with `drop` and `drop_low`
    label: str  # "nDCG@10"


@dataclass(frozen=True, kw_only=True)
class Rules:
    """How a task's engines are judged; the rules for realised precision and speed are every task's."""

    figures: tuple[Rule, ...]
    drop: Drop

    @property
    def thresholds(self) -> Mapping[str, bool]:
        """The fields of Thresholds that this task's engines are judged by -> whether they lie between 0 and 1."""
        return {**{rule.threshold: rule.is_share for rule in self.figures}, self.drop.threshold: True}


NDCG_DROP = Drop(name="ndcg_drop", threshold="max_ndcg_drop", section="retrieval", label="nDCG@10")
COSINES = (
    Rule(
        name="cosine_mean",
        threshold="min_cosine_mean",
        value="cosine.mean",
        label="mean cosine to the fp32 reference",
    ),
    Rule(name="cosine_p1", threshold="min_cosine_p1", value="cosine.p1", label="cosine of the worst percent of texts"),
    Rule(name="cosine_min", threshold="min_cosine_min", value="cosine.min", label="cosine of the worst text"),
    Rule(
        name="batch_invariance",
        threshold="min_batch_invariance",
        value="batch_invariance.min_cosine",
        label="cosine of a text alone and the same text in a batch",
        remedy="padding leaks into the vectors: check the attention mask and the pooling",
    ),
)


def figure(metrics: Mapping[str, Any], place: str) -> float | None:
    """The number at "cosine.mean"; None when there is none, or when it is not finite."""
    value: Any = metrics
    for key in place.split("."):
        value = value.get(key) if isinstance(value, Mapping) else None
    return number(value)


def number(value: Any) -> float | None:
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return float(value) if is_number and math.isfinite(value) else None
