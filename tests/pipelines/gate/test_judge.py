"""The gate: each figure against its threshold, missing parts, chance, and the reasons and remedies of a verdict."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest

from pipelines.gate import judge as gate
from pipelines.gate.thresholds import Thresholds
from pipelines.gate.verdict import Verdict, dump
from pipelines.tasks.table import TASKS
from serving.contract.profile import Precision

FP16 = TASKS["embed"].thresholds[Precision.FP16]


def metrics(**changed: Any) -> dict[str, Any]:
    """What a good fp16 engine measures, with some parts changed: cosine={"min": 0.9}."""
    good: dict[str, Any] = {
        "task": "embed",
        "precision": "fp16",
        "judged_with": "onnxruntime 1.31.1",
        "cosine": {"mean": 0.99999, "p1": 0.9999, "min": 0.9998, "values": [0.9998, 1.0]},
        "batch_invariance": {"min_cosine": 0.99999},
        "retrieval": {"ndcg_at_10": 0.7, "drop": 0.0002, "drop_low": -0.001, "drop_high": 0.001},
        "realized_precision": {"fp16": 1.0},
        "speed": {
            "items_per_s": 300.0,
            "baseline": {"items_per_s": 150.0},
            "throughput_ratio": 2.0,
            "latency_ratio": 0.6,
        },
    }
    for name, value in changed.items():
        good[name] = {**good[name], **value} if isinstance(value, dict) and isinstance(good[name], dict) else value
    return good


def judge(found: dict[str, Any], thresholds: Thresholds = FP16, evaluated: str = "engine") -> Verdict:
    verdict = gate.judge(
        found,
        TASKS["embed"].rules,
        thresholds,
        row="m__cpu__fp16__tp1",
        evaluated=evaluated,
        digests={"metrics.json": "sha256:1", "engine": "sha256:2"},
    )
    assert len(verdict.checks) == 8, "each threshold is accounted for, whatever was measured"
    assert len({check.name for check in verdict.checks}) == 8
    assert all(check.why for check in verdict.checks)
    assert verdict.passed == (not verdict.reasons)
    return verdict


def the(verdict: Verdict, name: str) -> gate.Check:
    return next(check for check in verdict.checks if check.name == name)


def test_an_engine_that_reaches_every_threshold_passes():
    verdict = judge(metrics())
    assert verdict.passed
    assert all(check.passed for check in verdict.checks if check.name != "cosine_mean")
    assert verdict.proof_min_cosine == FP16.proof_min_cosine


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"cosine": {"p1": 0.99}}, "cosine of the worst percent of texts 0.99 is below 0.9995"),
        ({"cosine": {"min": 0.88}}, "cosine of the worst text 0.88 is below 0.999"),
        ({"batch_invariance": {"min_cosine": 0.9}}, "the same text in a batch 0.9 is below 0.9999"),
        ({"retrieval": {"drop": 0.02, "drop_low": 0.01}}, "nDCG@10 drops by 0.02, at most 0.001 is allowed"),
        (
            {"realized_precision": {"fp16": 0.2, "fp32": 0.8}},
            "only 20% of the matrix products run in fp16, 90% is asked",
        ),
        ({"speed": {"throughput_ratio": 1.01}}, "throughput over the baseline 1.01 is below 1.3"),
        ({"speed": {"latency_ratio": 1.2}}, "time of one short query over the baseline 1.2 is above 1.05"),
    ],
)
def test_a_figure_beyond_its_threshold_fails_with_its_reason_and_a_remedy(changed: dict[str, Any], words: str):
    found = metrics()
    for name, value in changed.items():
        found[name] = value if name == "realized_precision" else {**found[name], **value}
    verdict = judge(found)
    assert not verdict.passed
    assert len(verdict.reasons) == 1
    assert words in verdict.reasons[0]
    assert verdict.remedies


@pytest.mark.parametrize("value", [None, float("nan"), float("inf"), "0.9999", True])
def test_a_figure_that_is_demanded_but_is_no_number_is_a_failed_check(value: Any):
    verdict = judge(metrics(cosine={"min": value}))
    assert not verdict.passed
    assert "no figure at cosine.min" in verdict.reasons[0]
    assert verdict.remedies == ("measure again",)


@pytest.mark.parametrize("part", ["cosine", "batch_invariance", "retrieval", "realized_precision", "speed"])
def test_a_missing_part_of_the_metrics_is_a_failed_check_and_never_skipped(part: str):
    found = metrics()
    del found[part]
    assert not judge(found).passed


def test_no_metrics_at_all_fail_every_demanded_check():
    assert len(judge({"task": "embed"}).reasons) == 7  # all but the mean, for which fp16 has no threshold


def test_finding_more_than_the_reference_is_no_fault():
    assert judge(metrics(retrieval={"drop": -0.5, "drop_low": -0.6})).passed


def test_a_drop_that_chance_explains_passes_and_says_so():
    verdict = judge(metrics(retrieval={"drop": 0.0014, "drop_low": -0.0004}))
    assert verdict.passed
    assert "chance explains it" in the(verdict, "ndcg_drop").why


def test_a_drop_without_its_interval_is_held_to_the_threshold():
    found = metrics(retrieval={"drop": 0.0014})
    del found["retrieval"]["drop_low"]
    assert not judge(found).passed


def test_a_threshold_that_is_not_set_is_not_judged_and_says_so():
    check = the(judge(metrics(), replace(FP16, min_cosine_p1=None)), "cosine_p1")
    assert check.passed is None
    assert "no min_cosine_p1 is set" in check.why


def test_speed_is_not_judged_where_the_engine_does_not_run_here():
    found = metrics()
    del found["speed"]
    verdict = judge(found, evaluated="typed-onnx")
    assert verdict.passed
    assert verdict.evaluated == "typed-onnx"
    assert "this SKU's engine does not run on this machine" in the(verdict, "speed_ratio").why


def test_speed_is_not_judged_where_there_is_no_baseline():
    verdict = judge(metrics(speed={"baseline": None}))
    assert verdict.passed
    assert "nothing to beat" in the(verdict, "latency_ratio").why


def test_the_verdict_names_what_it_judged_in_bytes_that_do_not_change():
    verdict = judge(metrics())
    content = json.loads(dump(verdict))
    assert content["digests"] == {"engine": "sha256:2", "metrics.json": "sha256:1"}
    assert content["row"] == "m__cpu__fp16__tp1"
    assert content["passed"] is True
    assert dump(verdict) == dump(judge(dict(reversed(metrics().items()))))


def test_a_cosine_below_one_is_not_said_to_be_one():
    assert "0.999999 is at least" in the(judge(metrics(cosine={"min": 0.9999997})), "cosine_min").why


RERANK = {
    "task": "rerank",
    "precision": "fp16",
    "scores": {"kendall_tau": 0.999, "max_abs_error": 0.004, "mean_abs_error": 0.001},
    "batch_invariance": {"max_abs_error": 0.002},
    "retrieval": {"drop": 0.0, "drop_low": -0.001, "drop_high": 0.001},
    "realized_precision": {"fp16": 1.0},
}
CLIP = {
    "task": "clip",
    "precision": "fp16",
    "cosine": {"mean": 0.99999, "p1": 0.9999, "min": 0.9998},
    "batch_invariance": {"min_cosine": 0.99999},
    "zero_shot": {"top1": 0.95, "drop": 0.0, "drop_low": 0.0, "drop_high": 0.0},
    "realized_precision": {"fp16": 1.0},
}


def judged(found: dict[str, Any]) -> Verdict:
    task = TASKS[found["task"]]
    return gate.judge(
        found,
        task.rules,
        task.thresholds[Precision.FP16],
        row="m__l4__fp16__tp1",
        evaluated="typed-onnx",
        digests={},
    )


@pytest.mark.parametrize("good", [RERANK, CLIP], ids=["rerank", "clip"])
def test_a_good_engine_of_another_task_passes_by_the_thresholds_of_that_task(good: dict[str, Any]):
    verdict = judged(good)
    assert verdict.passed, verdict.reasons
    assert {check.name for check in verdict.checks if check.passed} >= {"batch_invariance", "realized_precision"}


@pytest.mark.parametrize(
    ("good", "changed", "words"),
    [
        (RERANK, {"scores": {"kendall_tau": 0.9, "max_abs_error": 0.004}}, "Kendall's tau"),
        (RERANK, {"scores": {"kendall_tau": 0.999, "max_abs_error": 3.0}}, "largest error of a logit 3 is above"),
        (RERANK, {"batch_invariance": {"max_abs_error": 1.0}}, "alone and in a batch"),
        (RERANK, {"retrieval": {"drop": 0.2, "drop_low": 0.1}}, "nDCG@10 drops by 0.2"),
        (RERANK, {"scores": None}, "must be judged"),
        (CLIP, {"zero_shot": {"drop": 0.02, "drop_low": 0.01}}, "zero-shot accuracy drops by 0.02"),
        (CLIP, {"cosine": {"mean": 0.9, "p1": 0.8, "min": 0.7}}, "cosine of the worst text"),
        (CLIP, {"zero_shot": None}, "must be judged"),
    ],
)
def test_a_bad_figure_of_another_task_fails_and_says_which(good: dict[str, Any], changed: dict[str, Any], words: str):
    verdict = judged({**good, **changed})
    assert not verdict.passed
    assert any(words in reason for reason in verdict.reasons)
