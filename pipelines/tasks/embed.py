"""Embedding: text to vector."""

from __future__ import annotations

from pipelines.gate.rules import COSINES, NDCG_DROP, Rules
from pipelines.gate.thresholds import VECTORS, by_precision
from pipelines.tasks import labels
from pipelines.tasks.base import Task
from pipelines.tasks.labels import Column, Labels
from serving.tasks.base import ONLY

TASK = Task(
    recipe="pipelines.recipes.embed",
    measure="pipelines.measure.embed:MEASURE",
    demo="pipelines.cli.demo_requests:embed",
    model_keys=frozenset({"matryoshka"}),
    rules=Rules(figures=COSINES, drop=NDCG_DROP),
    thresholds=by_precision({**VECTORS, "max_ndcg_drop": (1e-3, 1e-3, 1e-3, 5e-3, 1e-2)}),
    labels=Labels(
        lead="Cosine is to the fp32 reference, over all golden texts." + labels.LEAD,
        columns=(
            labels.COSINE_MEAN,
            labels.COSINE_P1,
            Column(title="Cosine min", figure="cosine.min", text=labels.cosine_text, check="cosine_min"),
            *labels.NDCG,
            labels.INVARIANCE,
        ),
        loss=labels.COSINE_LOSS,
        loss_of=labels.cosine_loss,
        loss_of_one=labels.COSINE_LOSS_OF_ONE,
        losses=labels.cosine_losses,
        values="golden text",
        num_golden=lambda metrics: int(metrics.get("cosine", {}).get("num_texts", 0)),
        golden="golden texts",
        saturated={ONLY: "32 × 128 tokens"},
        single={ONLY: "one query, 20 tokens"},
        judged_by="What retrieval finds",
        labelled=labels.retrieval_set,
        labelled_text="nDCG@10 on {name}: {num_items} queries, each against {num_choices} passages.",
        score="retrieval.ndcg_at_10",
        score_text=labels.figure_text,
        reference_text="reference nDCG@10, {num_items} queries",
    ),
)
