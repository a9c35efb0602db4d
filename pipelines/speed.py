"""Measure how fast an engine is against the rung above it, on the machine at hand, which may be busy."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from serving.backends import load
from serving.backends.base import LoadOptions
from serving.profile import Precision
from serving.tasks import embed

SATURATION_SHAPE, QUERY_SHAPE = (32, 128), (1, 20)
SATURATION_ROUNDS, QUERY_ROUNDS, WARM_UP_ROUNDS = 9, 100, 2


def measure(
    engine: bytes,
    precision: Precision,
    stream: NDArray[np.int64],
    params: Mapping[str, Any],
    spec: embed.EmbedSpec,
    *,
    above: Path | None,
) -> dict[str, Any]:
    """Throughput when saturated and time of one short query, in turn with the rung above: A B A B, medians."""
    options = LoadOptions(precision=precision, cpu_isa=params.get("cpu_isa"))
    runs = {"this": load(params["backend"], engine, options)}
    if above is not None:
        rung = params["above"]
        options = LoadOptions(precision=Precision(rung["precision"]), cpu_isa=rung.get("cpu_isa"))
        runs["above"] = load(rung["backend"], above.read_bytes(), options)
    calls = {name: backend.infer for name, backend in runs.items()}
    batch, query = _within(SATURATION_SHAPE, spec), _within(QUERY_SHAPE, spec)
    saturated = interleaved(calls, _tokens(stream, batch, spec), SATURATION_ROUNDS)
    single = interleaved(calls, _tokens(stream, query, spec), QUERY_ROUNDS)
    for backend in runs.values():
        backend.close()
    found: dict[str, Any] = {
        name: {"items_per_s": round(batch[0] / saturated[name], 2), "latency_s": round(single[name], 6)}
        for name in runs
    }
    result = {**found["this"], "shape": batch, "query_shape": query, "above": None}
    if above is not None:
        result |= {
            "above": {**found["above"], **params["above"]},
            "throughput_ratio": round(saturated["above"] / saturated["this"], 4),
            "latency_ratio": round(single["this"] / single["above"], 4),
        }
    return result


def interleaved(
    calls: Mapping[str, Callable[[Any], Any]], inputs: Mapping[str, NDArray[np.int64]], num_rounds: int
) -> dict[str, float]:
    """Median seconds of each call. They take turns, so that a busy machine slows all of them alike."""
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for round_number in range(WARM_UP_ROUNDS + num_rounds):
        for name, call in calls.items():
            started = time.perf_counter()
            call(inputs)
            if round_number >= WARM_UP_ROUNDS:
                seconds[name].append(time.perf_counter() - started)
    return {name: statistics.median(values) for name, values in seconds.items()}


def _within(shape: tuple[int, int], spec: embed.EmbedSpec) -> tuple[int, int]:
    return min(shape[0], spec.shapes.max[0]), min(shape[1], spec.max_tokens, spec.shapes.max[1])


def _tokens(
    stream: NDArray[np.int64], shape: tuple[int, int], spec: embed.EmbedSpec
) -> Mapping[str, NDArray[np.int64]]:
    """Real tokens in one shape, without padding."""
    return embed.collate(list(np.resize(stream, shape)), spec)
