"""Measure how fast an engine is against its baseline, on the machine at hand, which may be busy."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from serving.backends import load
from serving.backends.base import Inputs, LoadOptions
from serving.contract.profile import Precision, ShapeRange
from serving.tasks.base import ONLY, Item, Tower

SATURATION_SHAPE, QUERY_SHAPE = (32, 128), (1, 20)
SATURATION_ROUNDS, QUERY_ROUNDS, WARM_UP_ROUNDS = 7, 100, 1


@dataclass(frozen=True, kw_only=True)
class Loads:
    """What an engine is timed with."""

    batch: Sequence[Item]  # saturates it
    single: Sequence[Item]  # one short request
    shape: tuple[int, ...]  # of the batch, for people: (32, 128)
    query_shape: tuple[int, ...]


def measure(
    engine: Path, precision: Precision, loads: Loads, params: Mapping[str, Any], tower: Tower, *, baseline: Path | None
) -> dict[str, Any]:
    """Throughput when saturated and time of one short query, in turn with its baseline: A B A B, medians."""
    options = LoadOptions(precision=precision, cpu_isa=params.get("cpu_isa"))
    runs = {"this": load(params["backend"], engine.read_bytes(), options)}  # not kept: it can be gigabytes
    if baseline is not None:
        its = params["baseline"]
        options = LoadOptions(precision=Precision(its["precision"]), cpu_isa=its.get("cpu_isa"))
        runs["baseline"] = load(its["backend"], baseline.read_bytes(), options)
    calls = {name: backend.infer for name, backend in runs.items()}
    saturated = interleaved(calls, tower.collate(loads.batch), SATURATION_ROUNDS)
    single = interleaved(calls, tower.collate(loads.single), QUERY_ROUNDS)
    for backend in runs.values():
        backend.close()
    figures: dict[str, Any] = {
        name: {"items_per_s": round(len(loads.batch) / saturated[name], 2), "latency_s": round(single[name], 6)}
        for name in runs
    }
    result = {**figures["this"], "shape": loads.shape, "query_shape": loads.query_shape, "baseline": None}
    if baseline is not None:
        result |= {
            "baseline": {**figures["baseline"], **params["baseline"]},
            "throughput_ratio": round(saturated["baseline"] / saturated["this"], 4),
            "latency_ratio": round(single["this"] / single["baseline"], 4),
        }
    return result


def of_towers(by_tower: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """One figure of all engines: the least gain of any, since a profile ships all of them."""
    if by_tower.keys() == {ONLY}:
        return dict(by_tower[ONLY])
    result: dict[str, Any] = {"towers": dict(by_tower), "baseline": None}
    if all(figures["baseline"] is not None for figures in by_tower.values()):
        result |= {
            "baseline": {tower: figures["baseline"] for tower, figures in by_tower.items()},
            "throughput_ratio": min(figures["throughput_ratio"] for figures in by_tower.values()),
            "latency_ratio": max(figures["latency_ratio"] for figures in by_tower.values()),
        }
    return result


def text_loads(items: Sequence[Item], tower: Tower, spec: TextSpec) -> Loads:
    """The tokens of real texts, run together and cut into the two shapes: no padding."""
    stream = np.concatenate(items, axis=-1)
    longest = min(spec.max_tokens, spec.shapes.max[1])
    (num_items, width), query = (
        (min(shape[0], tower.max_batch), min(shape[1], longest)) for shape in (SATURATION_SHAPE, QUERY_SHAPE)
    )
    return Loads(
        batch=_pieces(stream, num_items, width),
        single=_pieces(stream, *query),
        shape=(num_items, width),
        query_shape=query,
    )


def _pieces(stream: NDArray[np.int64], num_items: int, width: int) -> list[Item]:
    columns = np.arange(num_items * width) % stream.shape[-1]
    return [np.ascontiguousarray(part) for part in np.split(stream[..., columns], num_items, axis=-1)]


class TextSpec(Protocol):
    """What of a task's spec bounds its texts."""

    @property
    def max_tokens(self) -> int: ...

    @property
    def shapes(self) -> ShapeRange: ...


def interleaved(calls: Mapping[str, Callable[[Any], Any]], inputs: Inputs, num_rounds: int) -> dict[str, float]:
    """Median seconds of each call. They take turns, so that a busy machine slows all of them alike."""
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for round_number in range(WARM_UP_ROUNDS + num_rounds):
        for name, call in calls.items():
            started = time.perf_counter()
            call(inputs)
            if round_number >= WARM_UP_ROUNDS:
                seconds[name].append(time.perf_counter() - started)
    return {name: statistics.median(values) for name, values in seconds.items()}
