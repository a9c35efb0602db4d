"""Judge an engine: measured figures against thresholds, to a verdict that gives a reason for everything. Pure."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from pipelines.gate.thresholds import Thresholds
from pipelines.gate.verdict import Check, Verdict


@dataclass(frozen=True, kw_only=True)
class _Rule:
    """How one field of Thresholds is judged."""

    name: str
    threshold: str  # the field of Thresholds
    value: str  # where metrics.json has it: "cosine.mean"
    label: str  # "mean cosine"
    at_least: bool = True
    remedy: str


_LOOSER = "calibrate with more or other texts, keep sensitive layers wider, or leave this precision out"
_COSINES = (
    _Rule(
        name="cosine_mean",
        threshold="min_cosine_mean",
        value="cosine.mean",
        label="mean cosine to the fp32 reference",
        remedy=_LOOSER,
    ),
    _Rule(
        name="cosine_p1",
        threshold="min_cosine_p1",
        value="cosine.p1",
        label="cosine of the worst percent of texts",
        remedy=_LOOSER,
    ),
    _Rule(
        name="cosine_min",
        threshold="min_cosine_min",
        value="cosine.min",
        label="cosine of the worst text",
        remedy=_LOOSER,
    ),
    _Rule(
        name="batch_invariance",
        threshold="min_batch_invariance",
        value="batch_invariance.min_cosine",
        label="cosine of a text alone and the same text in a batch",
        remedy="padding leaks into the vectors: check the attention mask and the pooling",
    ),
)
_RULES = {
    "embed": _COSINES,
    "clip": _COSINES,
    "rerank": (
        _Rule(
            name="kendall_tau",
            threshold="min_kendall_tau",
            value="scores.kendall_tau",
            label="Kendall's tau to the fp32 reference's order",
            remedy=_LOOSER,
        ),
        _Rule(
            name="score_error",
            threshold="max_score_error",
            value="scores.max_abs_error",
            label="largest error of a logit",
            at_least=False,
            remedy=_LOOSER,
        ),
        _Rule(
            name="batch_invariance",
            threshold="max_batch_score_error",
            value="batch_invariance.max_abs_error",
            label="difference of a pair's logit alone and in a batch",
            at_least=False,
            remedy="padding leaks into the scores: check the attention mask",
        ),
    ),
}
_SPEED_RULES = (
    _Rule(
        name="speed_ratio",
        threshold="min_speed_ratio",
        value="speed.throughput_ratio",
        label="throughput over the baseline",
        remedy="it is not worth its loss of accuracy: leave this precision out for this SKU",
    ),
    _Rule(
        name="latency_ratio",
        threshold="max_latency_ratio",
        value="speed.latency_ratio",
        label="time of one short query over the baseline",
        at_least=False,
        remedy="single queries got slower: leave this precision out for this SKU",
    ),
)


def judge(
    metrics: Mapping[str, Any], thresholds: Thresholds, *, row: str, evaluated: str, digests: Mapping[str, str]
) -> Verdict:
    """Hold metrics.json against thresholds. A demanded figure that is missing or no number is a failed check."""
    task = str(metrics["task"])
    checks = (
        *(_check(rule, metrics, thresholds) for rule in _RULES[task]),
        _drop(_DROPS[task], metrics, thresholds),
        _realized(metrics, thresholds),
        *_speed(metrics, thresholds, evaluated),
    )
    return Verdict(
        row=row,
        passed=all(check.passed is not False for check in checks),
        evaluated=evaluated,
        judged_with=str(metrics.get("judged_with", "")),
        checks=checks,
        digests=dict(sorted(digests.items())),
        proof_min_cosine=thresholds.proof_min_cosine,
    )


def _check(rule: _Rule, metrics: Mapping[str, Any], thresholds: Thresholds) -> Check:
    value, threshold = _figure(metrics, rule.value), getattr(thresholds, rule.threshold)
    if threshold is None:
        return _not_judged(rule.name, value, f"{rule.label}: no {rule.threshold} is set for this precision")
    if value is None:
        return _missing(rule.name, threshold, rule.label, rule.value)
    passed = value >= threshold if rule.at_least else value <= threshold
    relation = (
        ("is at least" if rule.at_least else "is at most") if passed else "is below" if rule.at_least else "is above"
    )
    why = f"{rule.label} {_text(value)} {relation} {_text(threshold)}"
    return Check(
        name=rule.name,
        value=value,
        threshold=threshold,
        passed=passed,
        why=why,
        remedy="" if passed else rule.remedy,
    )


@dataclass(frozen=True, kw_only=True)
class _Drop:
    """What a labelled set says of an engine, against the reference on the same set."""

    name: str
    threshold: str
    place: str  # in metrics.json, of `drop` and `drop_low`
    label: str


_NDCG = _Drop(name="ndcg_drop", threshold="max_ndcg_drop", place="retrieval", label="nDCG@10")
_DROPS = {
    "embed": _NDCG,
    "rerank": _NDCG,
    "clip": _Drop(name="top1_drop", threshold="max_top1_drop", place="zero_shot", label="zero-shot accuracy"),
}


def _drop(rule: _Drop, metrics: Mapping[str, Any], thresholds: Thresholds) -> Check:
    """One-sided: more than the reference is no fault, and a drop counts only if chance does not explain it.

    On a few hundred queries, one answer that moves from the first to the second place changes nDCG by about 1e-3.
    """
    name, threshold = rule.name, getattr(thresholds, rule.threshold)
    value, low = _figure(metrics, f"{rule.place}.drop"), _figure(metrics, f"{rule.place}.drop_low")
    if threshold is None:
        return _not_judged(name, value, f"{rule.label}: no {rule.threshold} is set for this precision")
    if value is None:
        return _missing(name, threshold, f"the drop of {rule.label}", f"{rule.place}.drop")
    change = f"{rule.label} drops by {_text(value)}" if value > 0 else f"{rule.label} does not drop"
    if value <= threshold:
        passed, why = True, f"{change}, at most {_text(threshold)} is allowed"
    elif low is not None and low <= 0:
        passed = True
        why = (
            f"{change}, more than {_text(threshold)}, but its 95 % interval includes no drop at all: chance explains it"
        )
    else:
        passed, why = False, f"{change}, at most {_text(threshold)} is allowed"
    return Check(name=name, value=value, threshold=threshold, passed=passed, why=why, remedy="" if passed else _LOOSER)


def _realized(metrics: Mapping[str, Any], thresholds: Thresholds) -> Check:
    name, threshold = "realized_precision", thresholds.min_realized_precision
    precision = str(metrics.get("precision", "?"))
    shares = metrics.get("realized_precision")
    if threshold is None:
        return _not_judged(name, None, "realised precision: no min_realized_precision is set for this precision")
    if not isinstance(shares, Mapping) or not shares:
        return _missing(name, threshold, "the share of matrix products in each format", "realized_precision")
    value = _number(shares.get(precision, 0.0)) or 0.0
    formats = ", ".join(f"{_number(share) or 0.0:.0%} {name}" for name, share in sorted(shares.items()))
    why = f"{value:.0%} of the matrix products run in {precision}, {threshold:.0%} is asked (found: {formats})"
    if value >= threshold:
        return Check(name=name, value=value, threshold=threshold, passed=True, why=why)
    remedy = "the precision was not written into the graph, or the compiler did not keep it: look at the typed ONNX"
    return Check(name=name, value=value, threshold=threshold, passed=False, why=f"only {why}", remedy=remedy)


def _speed(metrics: Mapping[str, Any], thresholds: Thresholds, evaluated: str) -> Iterator[Check]:
    speed = metrics.get("speed")
    for rule in _SPEED_RULES:
        if evaluated != "engine":
            why = f"{rule.label}: this SKU's engine does not run on this machine"
            yield _not_judged(rule.name, None, why, getattr(thresholds, rule.threshold))
        elif isinstance(speed, Mapping) and speed.get("baseline") is None:
            why = f"{rule.label}: no wider precision of this model runs on this SKU here, so there is nothing to beat"
            yield _not_judged(rule.name, None, why, getattr(thresholds, rule.threshold))
        else:
            yield _check(rule, metrics, thresholds)


def _not_judged(name: str, value: float | None, why: str, threshold: float | None = None) -> Check:
    return Check(name=name, value=value, threshold=threshold, passed=None, why=f"not judged: {why}")


def _missing(name: str, threshold: float, label: str, place: str) -> Check:
    why = f"{label} must be judged, but metrics.json has no figure at {place}"
    return Check(name=name, value=None, threshold=threshold, passed=False, why=why, remedy="measure again")


def _figure(metrics: Mapping[str, Any], place: str) -> float | None:
    """The number at "cosine.mean"; None when there is none, or when it is not finite."""
    node: Any = metrics
    for key in place.split("."):
        node = node.get(key) if isinstance(node, Mapping) else None
    return _number(node)


def _number(value: Any) -> float | None:
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return float(value) if is_number and math.isfinite(value) else None


def _text(value: float) -> str:
    """Up to five decimals, or six for a value just below 1, which is never rounded to 1."""
    if 0.99999 < value < 1:
        return f"{min(value, 0.999999):.6f}"
    return f"{value:.5f}".rstrip("0").rstrip(".") if abs(value) < 10 else f"{value:.1f}"
