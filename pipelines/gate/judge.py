"""Judge an engine: measured figures against thresholds, to a verdict that gives a reason for everything. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from pipelines.gate.rules import LOOSER, Drop, Rule, Rules, figure, number
from pipelines.gate.thresholds import Thresholds
from pipelines.gate.verdict import Check, Verdict

_SPEED_RULES = (
    Rule(
        name="speed_ratio",
        threshold="min_speed_ratio",
        value="speed.throughput_ratio",
        label="throughput over the baseline",
        remedy="it is not worth its loss of accuracy: leave this precision out for this SKU",
    ),
    Rule(
        name="latency_ratio",
        threshold="max_latency_ratio",
        value="speed.latency_ratio",
        label="time of one short query over the baseline",
        at_least=False,
        remedy="single queries got slower: leave this precision out for this SKU",
    ),
)


def judge(
    metrics: Mapping[str, Any],
    rules: Rules,
    thresholds: Thresholds,
    *,
    row: str,
    evaluated: str,
    digests: Mapping[str, str],
) -> Verdict:
    """metrics.json against thresholds. A figure that is demanded and missing, or not a number, is a failed check.

    rules: of the metrics' task.
    """
    checks = (
        *(_check(rule, metrics, thresholds) for rule in rules.figures),
        _drop(rules.drop, metrics, thresholds),
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


def _check(rule: Rule, metrics: Mapping[str, Any], thresholds: Thresholds) -> Check:
    value, threshold = figure(metrics, rule.value), getattr(thresholds, rule.threshold)
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


def _drop(rule: Drop, metrics: Mapping[str, Any], thresholds: Thresholds) -> Check:
    """One-sided: finding more than the reference is no fault, and a drop counts when it is more than chance.

    On a few hundred queries one answer that moves from first to second is worth about 1e-3.
    """
    name, threshold = rule.name, getattr(thresholds, rule.threshold)
    value, low = figure(metrics, f"{rule.section}.drop"), figure(metrics, f"{rule.section}.drop_low")
    if threshold is None:
        return _not_judged(name, value, f"{rule.label}: no {rule.threshold} is set for this precision")
    if value is None:
        return _missing(name, threshold, f"the drop of {rule.label}", f"{rule.section}.drop")
    drop = f"{rule.label} drops by {_text(value)}" if value > 0 else f"{rule.label} does not drop"
    if value <= threshold:
        passed, why = True, f"{drop}, at most {_text(threshold)} is allowed"
    elif low is not None and low <= 0:
        passed = True
        why = f"{drop}, more than {_text(threshold)}, but its 95 % interval includes no drop at all: chance explains it"
    else:
        passed, why = False, f"{drop}, at most {_text(threshold)} is allowed"
    return Check(name=name, value=value, threshold=threshold, passed=passed, why=why, remedy="" if passed else LOOSER)


def _realized(metrics: Mapping[str, Any], thresholds: Thresholds) -> Check:
    name, threshold = "realized_precision", thresholds.min_realized_precision
    precision = str(metrics.get("precision", "?"))
    shares = metrics.get("realized_precision")
    if threshold is None:
        return _not_judged(name, None, "realised precision: no min_realized_precision is set for this precision")
    if not isinstance(shares, Mapping) or not shares:
        return _missing(name, threshold, "the share of matrix products in each format", "realized_precision")
    value = number(shares.get(precision, 0.0)) or 0.0
    formats = ", ".join(f"{number(share) or 0.0:.0%} {name}" for name, share in sorted(shares.items()))
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
            why = f"{rule.label}: no higher precision of this model runs on this SKU here, so there is nothing to beat"
            yield _not_judged(rule.name, None, why, getattr(thresholds, rule.threshold))
        else:
            yield _check(rule, metrics, thresholds)


def _not_judged(name: str, value: float | None, why: str, threshold: float | None = None) -> Check:
    return Check(name=name, value=value, threshold=threshold, passed=None, why=f"not judged: {why}")


def _missing(name: str, threshold: float, label: str, place: str) -> Check:
    why = f"{label} must be judged, but metrics.json has no figure at {place}"
    return Check(name=name, value=None, threshold=threshold, passed=False, why=why, remedy="measure again")


def _text(value: float) -> str:
    """Enough digits to see a cosine of 0.99995, and not more; what is below 1 is not said to be 1."""
    if 0.99999 < value < 1:
        return f"{min(value, 0.999999):.6f}"
    return f"{value:.5f}".rstrip("0").rstrip(".") if abs(value) < 10 else f"{value:.1f}"
