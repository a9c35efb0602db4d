"""From a recording to figures: rates, percentiles, and medians over rounds."""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec
import numpy as np
from numpy.typing import ArrayLike

from benchmarks.load.job import Arrays, Recording
from benchmarks.scenarios.scenarios import Requests

PERCENTILES = (50, 90, 95, 99)


class Figures(msgspec.Struct, frozen=True, kw_only=True):
    """One run's, or the medians of several runs'."""

    num_requests: int  # answered with 200; of several runs: all together
    requests_per_s: float
    items_per_s: float
    tokens_per_s: float
    latency_s: dict[str, float]  # "p50", "p90", "p95", "p99", "mean", "max"; of answers with 200
    statuses: dict[str, int]  # every status's count; "0": no answer
    num_wrong: int
    wall_s: float
    generator_cpu_share: float  # of one core
    generator_us_per_request: float
    lag_p99_s: float  # of open load: sent so much later than meant
    num_rounds: int = 1
    spread: float = 0.0  # of several runs: (largest - smallest) / median of the items per second


def of_run(recording: Recording, requests: Requests) -> Figures:
    """The figures of one run."""
    arrays = Arrays(recording)
    good = arrays.status == 200
    sent = arrays.request[good]
    wall = max(recording.wall_s, 1e-9)
    num_items, num_tokens = (np.array(values)[sent].sum() for values in (requests.num_items, requests.num_tokens))
    return Figures(
        num_requests=int(good.sum()),
        requests_per_s=float(good.sum() / wall),
        items_per_s=float(num_items / wall),
        tokens_per_s=float(num_tokens / wall),
        latency_s=latencies(arrays.latency_s[good]),
        statuses={str(status): count for status, count in sorted(Counter(arrays.status.tolist()).items())},
        num_wrong=recording.num_wrong,
        wall_s=recording.wall_s,
        generator_cpu_share=recording.cpu_s / wall,
        generator_us_per_request=1e6 * recording.cpu_s / max(1, len(arrays.status)),
        lag_p99_s=float(np.percentile(arrays.lag_s, 99)) if len(arrays.lag_s) else 0.0,
    )


def latencies(seconds: ArrayLike) -> dict[str, float]:
    """Percentiles that were really measured (no value between two), mean and largest; empty for nothing."""
    values = np.asarray(seconds, dtype=np.float64)
    if not values.size:
        return {}
    percentiles = np.percentile(values, PERCENTILES, method="higher").tolist()
    by_name = {f"p{percent}": float(value) for percent, value in zip(PERCENTILES, percentiles, strict=True)}
    return {**by_name, "mean": float(values.mean()), "max": float(values.max())}


def median(runs: Sequence[Figures]) -> Figures:
    """Of several runs: the median of each figure, by itself; counts are summed."""
    if not runs:
        raise ValueError("no runs")

    def middle(field: str) -> float:
        return float(statistics.median(getattr(run, field) for run in runs))

    statuses: Counter[str] = Counter()
    for run in runs:
        statuses.update(run.statuses)
    rates = [run.items_per_s for run in runs]
    return Figures(
        num_requests=sum(run.num_requests for run in runs),
        requests_per_s=middle("requests_per_s"),
        items_per_s=middle("items_per_s"),
        tokens_per_s=middle("tokens_per_s"),
        latency_s=_median_of_each([run.latency_s for run in runs if run.latency_s]),
        statuses=dict(sorted(statuses.items())),
        num_wrong=sum(run.num_wrong for run in runs),
        wall_s=sum(run.wall_s for run in runs),
        generator_cpu_share=middle("generator_cpu_share"),
        generator_us_per_request=middle("generator_us_per_request"),
        lag_p99_s=middle("lag_p99_s"),
        num_rounds=len(runs),
        spread=(max(rates) - min(rates)) / statistics.median(rates) if statistics.median(rates) else 0.0,
    )


def _median_of_each(runs: Sequence[Mapping[str, float]]) -> dict[str, float]:
    return {name: statistics.median(run[name] for run in runs) for name in runs[0]} if runs else {}


def as_json(figures: Figures) -> Any:
    """Plain values, rounded: what is written into files."""
    return _rounded(msgspec.to_builtins(figures))


def _rounded(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _rounded(entry) for key, entry in value.items()}
    return float(f"{value:.5g}") if isinstance(value, float) else value
