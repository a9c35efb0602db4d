"""Measure a reranking engine: its logits against the fp32 reference's, the order it finds, batch invariance."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipelines.datasets import rerank, retrieval
from pipelines.measure.base import LabelledSet, Measure, Runners, Score, alone_and_together, cut
from pipelines.measure.runner import Items, Outputs, rounded
from pipelines.measure.speed import Loads, text_loads
from serving.tasks.base import ONLY, Recorded
from serving.tasks.rerank import Encoder, RerankSpec

INVARIANCE_PAIRS, INVARIANCE_BATCH, INVARIANCE_MAX_TOKENS = 16, 64, 96


def labelled(encoder: Encoder, params: Mapping[str, Any], inputs: Mapping[str, Path]) -> LabelledSet:
    name, texts = retrieval.load(params, inputs)
    chosen = rerank.candidates(texts, num_queries=rerank.NUM_QUERIES, num_candidates=rerank.NUM_CANDIDATES)
    pairs = [encoder.encode(query, [passage], truncate="END")[0] for query, passage in chosen.pairs()]
    items = cut(pairs, rerank.MAX_TOKENS)
    first_stage = retrieval.ndcg_of_ranking(chosen.ranking, chosen.relevant)

    def score(runners: Runners) -> Score:
        """nDCG@10 in the engine's order of the candidates."""
        logits = runners[ONLY].outputs(items)[:, 0].reshape(chosen.ranking.shape)
        return Score(values=retrieval.ndcg_of_ranking(rerank.reranked(chosen.ranking, logits), chosen.relevant))

    return LabelledSet(
        section="retrieval",
        figure="ndcg_at_10",
        identity={"set": name, "num_queries": len(chosen.queries), "num_candidates": rerank.NUM_CANDIDATES},
        describe=lambda record: "{set}, {num_queries} queries with {num_candidates} candidates".format(**record),
        facts={
            "set": name,
            "first_stage": rerank.FIRST_STAGE,
            "max_tokens": rerank.MAX_TOKENS,
            "num_queries": len(chosen.queries),
            "num_passages": len(texts.passages),
            "num_candidates": chosen.ranking.shape[1],
            "first_stage_ndcg_at_10": rounded(first_stage.mean()),
        },
        score=score,
    )


def golden(outputs: Mapping[str, Outputs], recorded: Sequence[Recorded]) -> dict[str, Any]:
    return {"scores": scores(outputs[ONLY][:, 0], recorded[0].rows[:, 0])}


def scores(logits: NDArray[np.float32], reference: NDArray[np.float32]) -> dict[str, Any]:
    """(N,) logits against the fp32 reference's: errors, and how far the order of all pairs agrees."""
    from scipy.stats import kendalltau

    errors = np.abs(logits.astype(np.float64) - reference.astype(np.float64))
    # Undefined where all scores are equal, which orders nothing.
    tau = float(kendalltau(logits, reference).statistic) if np.ptp(logits) > 0 and np.ptp(reference) > 0 else 0.0
    return {
        "num_pairs": len(errors),
        "max_abs_error": rounded(errors.max()),
        "mean_abs_error": rounded(errors.mean()),
        "kendall_tau": rounded(tau),
        "golden": [rounded(value) for value in reference],
        "found": [rounded(value) for value in logits],
    }


def invariance(runners: Runners, items: Mapping[str, Items]) -> dict[str, Any]:
    """Padding must not leak into a score: the largest difference of a logit, alone and in a batch."""
    pairs = cut(items[ONLY], INVARIANCE_MAX_TOKENS)
    alone, together, size = alone_and_together(
        runners[ONLY], pairs, num_probes=INVARIANCE_PAIRS, batch=INVARIANCE_BATCH
    )
    errors = np.abs(together.astype(np.float64) - alone.astype(np.float64))
    return {"max_abs_error": rounded(errors.max()), "num_pairs": len(errors), "batch_size": size}


def loads(spec: RerankSpec, items: Mapping[str, Items]) -> dict[str, Loads]:
    return {ONLY: text_loads(items[ONLY], spec.towers[0], spec)}


MEASURE = Measure(
    labelled=labelled,
    golden=golden,
    invariance=invariance,
    loads=loads,
    facts={
        "kendall_tau": ("scores", "kendall_tau"),
        "max_abs_error": ("scores", "max_abs_error"),
        "ndcg_at_10": ("retrieval", "ndcg_at_10"),
    },
)
