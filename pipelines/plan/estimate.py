"""Estimate the time, memory and disk of a plan from the records of earlier runs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

from pipelines.plan.graph import Graph, Step
from pipelines.plan.schedule import Schedule
from pipelines.plan.staleness import Staleness
from pipelines.store.store import Record, Store

# The parameters in which two steps of one stage must agree to count as alike: the strictest set first.
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

    wall_s: float  # with the given number of jobs
    work_s: float  # of all steps, one after the other
    peak_rss_bytes: int  # of the steps that run at the same time
    output_bytes: int
    unknown: tuple[str, ...]  # steps of a stage that never ran here


def estimate(step: Step, past: Sequence[Record], last: str | None) -> Estimate | None:
    """From the step's own last run, whose key is `last`; else the median of the runs most like it; None without any."""
    if own := [record for record in past if record.key == last]:
        return _of(own, "its last run")
    of_stage = [record for record in past if record.stage == step.stage]
    for names in ALIKE:
        params = [step.params.get(name) for name in names]
        alike = [record for record in of_stage if [_params(record).get(name) for name in names] == params]
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
    """For each step that would be built; None for one of a stage that never ran here."""
    past = store.records()
    by_step = dict[str, Estimate | None]()
    for step_id, state in states.items():
        if state.record is None:
            step = graph.steps[step_id]
            latest = store.latest(step.stage, step.subject)
            by_step[step_id] = estimate(step, past, latest.key if latest else None)
    return by_step


def totals(graph: Graph, estimates: Mapping[str, Estimate | None], jobs: int) -> Totals:
    """Play through the build of these steps, as pipelines.build.executor runs them."""
    schedule = Schedule({step_id: step for step_id, step in graph.steps.items() if step_id in estimates}, jobs)
    ends, now, peak = dict[str, float](), 0.0, 0
    while schedule:
        for step in schedule.ready():
            if schedule.may_start(step):
                schedule.start(step)
                guess = estimates[step.id]
                ends[step.id] = now + (guess.duration_s if guess else 0.0)
        peak = max(peak, sum(guess.peak_rss_bytes for step_id in ends if (guess := estimates[step_id]) is not None))
        now = min(ends.values())
        for step_id in [step_id for step_id, end in ends.items() if end <= now]:
            schedule.finish(graph.steps[step_id])
            del ends[step_id]
    guesses = [guess for guess in estimates.values() if guess is not None]
    return Totals(
        wall_s=now,
        work_s=sum(guess.duration_s for guess in guesses),
        peak_rss_bytes=peak,
        output_bytes=sum(guess.output_bytes for guess in guesses),
        unknown=tuple(step_id for step_id, guess in estimates.items() if guess is None),
    )
