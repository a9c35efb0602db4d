"""What measuring differs in from task to task, as values, and the figures that tasks share."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipelines.measure.runner import Items, Outputs, Runner, rounded, unit
from pipelines.measure.speed import Loads
from serving.tasks.base import Recorded

Runners = Mapping[str, Runner]  # tower -> its engine
Values = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class Score:
    """How an engine answers a labelled set."""

    values: Values  # one for each query or image
    metrics: Mapping[str, Any] = field(default_factory=dict)  # further parts of metrics.json


@dataclass(frozen=True, kw_only=True)
class LabelledSet:
    """Labelled items, encoded for a task's towers."""

    section: str  # of metrics.json: "retrieval"
    figure: str  # the mean of the values: "ndcg_at_10"
    identity: Mapping[str, Any]  # what a recorded reference must agree in: {"set": …, "max_tokens": 64}
    describe: Callable[[Mapping[str, Any]], str]  # such an identity, in a message
    facts: Mapping[str, Any]  # of metrics.json's section: how many queries, …
    score: Callable[[Runners], Score]


@dataclass(frozen=True, kw_only=True)
class Measure:
    """How a task's engines are measured; each function gives a part of metrics.json."""

    labelled: Callable[[Any, Mapping[str, Any], Mapping[str, Path]], LabelledSet]  # encoder, params, inputs
    golden: Callable[[Mapping[str, Outputs], Sequence[Recorded]], Mapping[str, Any]]  # outputs of each tower
    invariance: Callable[[Runners, Mapping[str, Items]], Mapping[str, Any]]  # golden items of each tower
    loads: Callable[[Any, Mapping[str, Items]], Mapping[str, Loads]]  # spec, golden items of each tower
    facts: Mapping[str, tuple[str, str]]  # what a person sees of it: "cosine_min" -> ("cosine", "min")


def cosine(vectors: Outputs, reference: Outputs) -> dict[str, Any]:
    """(N, D) unit vectors against the fp32 reference's: the figures, and every value for the report's histogram."""
    reference = reference / np.linalg.norm(reference, axis=1, keepdims=True)
    values = np.einsum("nd,nd->n", vectors.astype(np.float64), reference.astype(np.float64))
    return {
        "num_texts": len(values),
        "mean": rounded(values.mean()),
        "p1": rounded(np.quantile(values, 0.01)),
        "min": rounded(values.min()),
        "values": [rounded(value) for value in values],
    }


def alone_and_together(runner: Runner, items: Items, *, num_probes: int, batch: int) -> tuple[Outputs, Outputs, int]:
    """Some items' outputs alone and in a full batch of mixed lengths, each (num_probes, D), and that batch's size."""
    by_length = sorted(items, key=runner.tower.cost)
    size = min(batch, runner.tower.max_batch, len(items))
    mixed = [by_length[i] for i in np.linspace(0, len(by_length) - 1, size).astype(int)]
    probes = np.linspace(0, size - 1, min(num_probes, size)).astype(int)
    together = runner.run(mixed)[probes]
    return np.concatenate([runner.run([mixed[i]]) for i in probes]), together, size


def cosines_alone_and_together(runner: Runner, items: Items, *, num_probes: int, batch: int) -> tuple[Values, int]:
    """Padding must not leak into a vector: the cosine of each, alone and in a batch, and the batch's size."""
    alone, together, size = alone_and_together(runner, items, num_probes=num_probes, batch=batch)
    return np.einsum("nd,nd->n", unit(together).astype(np.float64), unit(alone).astype(np.float64)), size


def cut(items: Items, max_tokens: int) -> Items:
    """The first tokens of each, with the last one kept: it is the special token that ends a text."""
    return [
        item if item.shape[-1] <= max_tokens else np.concatenate([item[..., : max_tokens - 1], item[..., -1:]], axis=-1)
        for item in items
    ]
