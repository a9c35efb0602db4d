"""Guess what a plan will take, from what steps took before: seconds, memory, disk, and how long side by side."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

from pipelines.plan.graph import Graph, Step
from pipelines.plan.staleness import Staleness
from pipelines.store.store import Record, Store

# What makes two steps of one stage alike, most telling first: their compiler and precision, then the stage alone.
ALIKE = (("compiler", "precision", "backend", "evaluated", "task"), ("compiler", "precision"), ())


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """What a step will probably take."""

    duration_s: float
    peak_rss_bytes: int
    output_bytes: int
    basis: str  # "its last run", "4 like it", "12 runs of compile"


@dataclass(frozen=True, kw_only=True)
class Totals:
    """What the whole build will probably take."""

    wall_s: float  # with so many steps at a time
    work_s: float  # one after the other
    peak_rss_bytes: int  # at the same time
    output_bytes: int
    unknown: tuple[str, ...]  # steps of a stage that never ran here


def estimate(step: Step, past: Sequence[Record], last: str | None) -> Estimate | None:
    """By the step's own last run (its key is `last`), else the median of those most like it; None without any."""
    if own := [record for record in past if record.key == last]:
        return _of(own, "its last run")
    of_stage = [record for record in past if record.stage == step.stage]
    for names in ALIKE:
        wanted = [step.params.get(name) for name in names]
        alike = [record for record in of_stage if [_params(record).get(name) for name in names] == wanted]
        if alike:
            return _of(alike, f"{len(alike)} like it" if names else f"{len(alike)} runs of {step.stage}")
    return None


def _params(record: Record) -> Mapping[str, Any]:
    params: Mapping[str, Any] = record.key_inputs.get("params", {})
    return params


def _of(records: Sequence[Record], basis: str) -> Estimate:
    return Estimate(
        duration_s=median(record.duration_s for record in records),
        peak_rss_bytes=int(median(record.peak_rss_bytes for record in records)),
        output_bytes=int(median(sum(blob.size_bytes for blob in record.outputs.values()) for record in records)),
        basis=basis,
    )


def estimates(graph: Graph, states: Mapping[str, Staleness], store: Store) -> dict[str, Estimate | None]:
    """For each step that would be built."""
    past = store.records()
    found = dict[str, Estimate | None]()
    for step_id, state in states.items():
        if state.record is None:
            step = graph.steps[step_id]
            latest = store.latest(step.stage, step.subject)
            found[step_id] = estimate(step, past, latest.key if latest else None)
    return found


def totals(graph: Graph, found: Mapping[str, Estimate | None], jobs: int) -> Totals:
    """Play the build through as pipelines.build.executor does: so many at a time, each after its inputs, some alone."""
    pending = [step_id for step_id in graph.steps if step_id in found]
    ends, running, now, peak = dict[str, float](), dict[str, float](), 0.0, 0
    while pending or running:
        for step_id in list(pending):
            step = graph.steps[step_id]
            waits = any(ref.step in found and ref.step not in ends for ref in step.inputs.values())
            alone = step.exclusive and running
            if waits or len(running) >= jobs or alone or any(graph.steps[other].exclusive for other in running):
                continue
            guess = found[step_id]
            running[step_id] = now + (guess.duration_s if guess else 0.0)
            pending.remove(step_id)
        peak = max(peak, sum(_rss(found[step_id]) for step_id in running))
        now = min(running.values())
        for step_id in [step_id for step_id, end in running.items() if end <= now]:
            ends[step_id] = running.pop(step_id)
    known: Iterable[Estimate] = [guess for guess in found.values() if guess]
    return Totals(
        wall_s=now,
        work_s=sum(guess.duration_s for guess in known),
        peak_rss_bytes=peak,
        output_bytes=sum(guess.output_bytes for guess in known),
        unknown=tuple(step_id for step_id, guess in found.items() if guess is None),
    )


def _rss(guess: Estimate | None) -> int:
    return guess.peak_rss_bytes if guess else 0
