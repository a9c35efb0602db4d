"""What an engine must reach before it ships: the thresholds' names, and their defaults for each task and precision."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

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
    max_top1_drop: float | None = (
        None  # clip: zero-shot accuracy of the reference minus the engine's, 0.001 is 0.1 point
    )
    min_batch_invariance: float | None = None  # cosine of a text alone and in a full batch
    max_batch_score_error: float | None = None  # rerank: difference of a logit alone and in a full batch
    min_realized_precision: float | None = None  # share of matrix multiplications that run in the precision
    min_speed_ratio: float | None = None  # throughput over the baseline
    max_latency_ratio: float | None = None  # batch-1 latency over the baseline
    proof_min_cosine: float  # the worst golden text at boot


_P = Precision
_SIXTEEN_BIT = Thresholds(
    min_cosine_p1=0.9995,
    min_cosine_min=0.999,
    max_ndcg_drop=1e-3,
    min_batch_invariance=0.9999,
    min_realized_precision=0.9,
    min_speed_ratio=1.3,
    max_latency_ratio=1.05,
    proof_min_cosine=0.999,
)
_RERANK: Mapping[Precision, Thresholds] = {
    _P.FP32: Thresholds(
        min_kendall_tau=0.999,
        max_score_error=1e-3,
        max_ndcg_drop=1e-3,
        max_batch_score_error=1e-3,
        proof_min_cosine=0.999,
    ),
    _P.FP16: Thresholds(
        min_kendall_tau=0.995,
        max_score_error=0.05,
        max_ndcg_drop=1e-3,
        max_batch_score_error=0.05,
        min_realized_precision=0.9,
        min_speed_ratio=1.3,
        max_latency_ratio=1.05,
        proof_min_cosine=0.999,
    ),
    _P.BF16: Thresholds(
        min_kendall_tau=0.98,
        max_score_error=0.2,
        max_ndcg_drop=1e-3,
        max_batch_score_error=0.2,
        min_realized_precision=0.9,
        min_speed_ratio=1.3,
        max_latency_ratio=1.05,
        proof_min_cosine=0.999,
    ),
    _P.FP8: Thresholds(
        max_ndcg_drop=2e-3,
        max_batch_score_error=0.5,
        min_realized_precision=0.7,
        min_speed_ratio=1.1,
        max_latency_ratio=1.05,
        proof_min_cosine=0.98,
    ),
    _P.INT8: Thresholds(
        max_ndcg_drop=5e-3,
        max_batch_score_error=0.5,
        min_realized_precision=0.4,  # the recovery search keeps what int8 harms wide
        min_speed_ratio=1.1,
        max_latency_ratio=1.05,
        proof_min_cosine=0.97,
    ),
}
_CLIP: Mapping[Precision, Thresholds] = {
    _P.FP32: Thresholds(
        min_cosine_mean=0.9999,
        min_cosine_p1=0.9999,
        min_cosine_min=0.9999,
        max_top1_drop=1e-3,
        min_batch_invariance=0.9999,
        proof_min_cosine=0.999,
    ),
    _P.FP16: replace(_SIXTEEN_BIT, max_ndcg_drop=None, max_top1_drop=1e-3),
    _P.BF16: replace(_SIXTEEN_BIT, max_ndcg_drop=None, max_top1_drop=1e-3),
    _P.FP8: Thresholds(
        min_cosine_mean=0.995,
        min_cosine_p1=0.98,
        max_top1_drop=3e-3,
        min_batch_invariance=0.999,
        min_realized_precision=0.65,
        min_speed_ratio=1.1,
        max_latency_ratio=1.05,
        proof_min_cosine=0.97,
    ),
    _P.INT8: Thresholds(
        min_cosine_mean=0.99,
        max_top1_drop=3e-3,
        min_batch_invariance=0.998,
        min_realized_precision=0.4,  # the recovery search keeps what int8 harms wide
        min_speed_ratio=1.1,
        max_latency_ratio=1.05,
        proof_min_cosine=0.97,
    ),
}
# Anchored on what peers hold themselves to; docs/matrix.md gives the source of each figure.
DEFAULT_GATES: Mapping[str, Mapping[Precision, Thresholds]] = {
    "embed": {
        _P.FP32: Thresholds(  # the reference's own precision: no baseline, nothing to realise
            min_cosine_mean=0.9999,
            min_cosine_p1=0.9999,
            min_cosine_min=0.9999,
            max_ndcg_drop=1e-3,
            min_batch_invariance=0.9999,
            proof_min_cosine=0.999,
        ),
        _P.FP16: _SIXTEEN_BIT,
        _P.BF16: _SIXTEEN_BIT,
        _P.FP8: Thresholds(
            min_cosine_mean=0.995,
            min_cosine_p1=0.98,
            max_ndcg_drop=5e-3,
            min_batch_invariance=0.999,
            min_realized_precision=0.7,
            min_speed_ratio=1.1,
            max_latency_ratio=1.05,
            proof_min_cosine=0.98,
        ),
        _P.INT8: Thresholds(
            min_cosine_mean=0.99,
            max_ndcg_drop=1e-2,
            min_batch_invariance=0.998,
            min_realized_precision=0.4,  # the recovery search keeps what int8 harms wide
            min_speed_ratio=1.1,
            max_latency_ratio=1.05,
            proof_min_cosine=0.97,
        ),
    },
    "rerank": _RERANK,
    "clip": _CLIP,
}
