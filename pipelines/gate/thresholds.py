"""What an engine must reach before it ships: the thresholds' names, and the defaults that tasks share."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from serving.contract.profile import Precision


@dataclass(frozen=True, kw_only=True)
class Thresholds:
    """What an engine of a task and precision must reach. None: measured where possible, not judged."""

    min_cosine_mean: float | None = None  # vectors against the fp32 reference
    min_cosine_p1: float | None = None  # the worst percent of texts
    min_cosine_min: float | None = None  # the worst text
    max_ndcg_drop: float | None = None  # nDCG@10 of the reference minus the engine's; one-sided
    min_kendall_tau: float | None = None  # rerank: the order of the golden pairs' scores, 1 where it is the reference's
    max_score_error: float | None = None  # rerank: the largest difference of a logit from the reference's
    max_top1_drop: float | None = None  # clip: zero-shot accuracy of the reference minus the engine's
    min_batch_invariance: float | None = None  # cosine of a text alone and in a full batch
    max_batch_score_error: float | None = None  # rerank: difference of a logit alone and in a full batch
    min_realized_precision: float | None = None  # share of matrix multiplications that run in the precision
    min_speed_ratio: float | None = None  # throughput over the baseline
    max_latency_ratio: float | None = None  # batch-1 latency over the baseline
    proof_min_cosine: float  # the worst golden text at boot


# Field -> its default for each precision, in the order of Precision.
Table = Mapping[str, tuple[Any, Any, Any, Any, Any]]
# fmt: off
EVERY_TASK: Table = {  # fp32 is the reference's own precision: it has no baseline, and nothing to realise
    #                          fp32    fp16    bf16    fp8    int8
    "min_realized_precision": (None,   0.9,    0.9,    0.7,   0.4),  # int8: some layers stay in high precision
    "min_speed_ratio":        (None,   1.3,    1.3,    1.1,   1.1),
    "max_latency_ratio":      (None,   1.05,   1.05,   1.05,  1.05),
    "proof_min_cosine":       (0.999,  0.999,  0.999,  0.98,  0.97),
}
VECTORS: Table = {  # of tasks whose answers are vectors
    **EVERY_TASK,
    "min_cosine_mean":        (0.9999, None,   None,   0.995, 0.99),
    "min_cosine_p1":          (0.9999, 0.9995, 0.9995, 0.98,  None),
    "min_cosine_min":         (0.9999, 0.999,  0.999,  None,  None),
    "min_batch_invariance":   (0.9999, 0.9999, 0.9999, 0.999, 0.998),
}
# fmt: on


def by_precision(table: Table) -> Mapping[Precision, Thresholds]:
    return {
        precision: Thresholds(**{field: values[column] for field, values in table.items()})
        for column, precision in enumerate(Precision)
    }
