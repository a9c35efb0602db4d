"""Reranking: query and passage to score."""

from __future__ import annotations

from pipelines.gate.rules import NDCG_DROP, Rule, Rules, figure
from pipelines.gate.thresholds import EVERY_TASK, by_precision
from pipelines.tasks import labels
from pipelines.tasks.base import Task
from pipelines.tasks.labels import Column, Labels, Metrics, error_text, figure_text
from serving.tasks.base import ONLY

RULES = Rules(
    figures=(
        Rule(
            name="kendall_tau",
            threshold="min_kendall_tau",
            value="scores.kendall_tau",
            label="Kendall's tau to the fp32 reference's order",
        ),
        Rule(
            name="score_error",
            threshold="max_score_error",
            value="scores.max_abs_error",
            label="largest error of a logit",
            at_least=False,
            is_share=False,
        ),
        Rule(
            name="batch_invariance",
            threshold="max_batch_score_error",
            value="batch_invariance.max_abs_error",
            label="difference of a pair's logit alone and in a batch",
            at_least=False,
            is_share=False,
            remedy="padding leaks into the scores: check the attention mask",
        ),
    ),
    drop=NDCG_DROP,
)
# fmt: off
THRESHOLDS = by_precision({
    **EVERY_TASK,
    #                         fp32    fp16    bf16    fp8    int8
    "min_kendall_tau":       (0.999,  0.995,  0.98,   None,  None),
    "max_score_error":       (1e-3,   0.05,   0.2,    None,  None),
    "max_batch_score_error": (1e-3,   0.05,   0.2,    0.5,   0.5),
    "max_ndcg_drop":         (1e-3,   1e-3,   1e-3,   2e-3,  5e-3),
})
# fmt: on


def _losses(metrics: Metrics) -> tuple[float, ...]:
    scores = metrics.get("scores", {})
    return tuple(abs(a - b) for a, b in zip(scores.get("found", ()), scores.get("golden", ()), strict=True))


TASK = Task(
    recipe="pipelines.recipes.rerank",
    measure="pipelines.measure.rerank:MEASURE",
    demo="pipelines.cli.demo_requests:rerank",
    rules=RULES,
    thresholds=THRESHOLDS,
    labels=Labels(
        lead="Logits are held against those of the fp32 reference, over all golden pairs." + labels.LEAD,
        columns=(
            Column(
                title="Kendall τ",
                figure="scores.kendall_tau",
                text=lambda value: figure_text(value, 5),
                check="kendall_tau",
            ),
            Column(title="Logit error mean", figure="scores.mean_abs_error", text=error_text),
            Column(title="Logit error max", figure="scores.max_abs_error", text=error_text, check="score_error"),
            *labels.NDCG,
            Column(
                title="Batch Δ logit",
                figure="batch_invariance.max_abs_error",
                text=error_text,
                check="batch_invariance",
            ),
        ),
        loss="mean error of a logit",
        loss_of=lambda metrics: figure(metrics, "scores.mean_abs_error"),
        loss_of_one="error of a logit",
        losses=_losses,
        values="golden pair",
        num_golden=lambda metrics: int(metrics.get("scores", {}).get("num_pairs", 0)),
        golden="golden pairs",
        saturated={ONLY: "32 × 128 tokens"},
        single={ONLY: "one pair, 20 tokens"},
        judged_by="What ranking finds",
        labelled=labels.retrieval_set,
        labelled_text="nDCG@10 on {name}: {num_items} queries; what BM25 finds among {num_choices} passages is "
        "ranked anew.",
        score="retrieval.ndcg_at_10",
        score_text=figure_text,
        reference_text="reference nDCG@10, {num_items} queries",
        baseline_text="nDCG@10 of BM25, before ranking",
    ),
)
