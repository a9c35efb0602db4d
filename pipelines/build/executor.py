"""Run the stale steps of a graph. Outputs go into the store first, the record of the step last."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path

from pipelines.build.process import run_stage
from pipelines.errors import EngineryError
from pipelines.gate import verdict as verdicts
from pipelines.gate.judge import judge
from pipelines.gate.thresholds import Thresholds
from pipelines.plan.cache_key import Prepared, inputs_of, prepare
from pipelines.plan.graph import Graph, Ref, Step
from pipelines.plan.schedule import Schedule
from pipelines.stage import STAGES
from pipelines.store import claims
from pipelines.store.store import Blob, Record, Store
from pipelines.tasks.table import TASKS


@dataclass(frozen=True, kw_only=True)
class StepResult:
    """What became of one step."""

    step: Step
    record: Record | None = None  # None: it failed
    reused: bool = False
    error: str | None = None
    blocked_by: str | None = None  # the step that failed, if it is another one
    transient: bool = False  # the failure may pass by itself

    @property
    def built(self) -> bool:
        return self.record is not None and not self.reused


class Progress:
    """Who watches a build; by itself nobody."""

    def started(self, step: Step) -> None:
        """A step begins to run."""

    def finished(self, step: Step, result: StepResult) -> None:
        """A step ran, was reused or cannot run."""

    def log(self, message: str) -> None:
        """What goes on after the steps."""


def run(
    graph: Graph, store: Store, *, jobs: int = 2, progress: Progress | None = None, shared: bool = False
) -> dict[str, StepResult]:
    """Bring every step of the graph up to date. A failed step fails those that take from it, and no others.

    shared: other builders work in the same store at the same time; each step is claimed (pipelines.store.claims).
    """
    progress, schedule = progress or Progress(), Schedule(graph.steps, jobs)
    results: dict[str, StepResult] = {}
    stale: dict[str, Prepared] = {}  # steps that wait for their turn
    running: dict[Future[StepResult], Step] = {}

    def output(ref: Ref) -> Blob | None:
        record = results[ref.step].record
        return record.outputs.get(ref.output) if record else None

    def settle(result: StepResult) -> None:
        results[result.step.id] = result
        schedule.finish(result.step)
        progress.finished(result.step, result)

    with ThreadPoolExecutor(max_workers=jobs) as pool:
        while schedule:
            for step in schedule.ready():
                if (failed := _blocked(step, results)) is not None:
                    settle(failed)
                    continue
                if step.id not in stale:
                    stale[step.id] = prepare(step, inputs_of(step, output), store)
                record = stale[step.id].record
                if record is not None:
                    store.point(record)
                    settle(StepResult(step=step, record=record, reused=True))
                elif schedule.may_start(step):
                    schedule.start(step)
                    progress.started(step)
                    running[pool.submit(run_step, stale.pop(step.id), store, shared)] = step
            if running:
                done, _ = wait(running, return_when=FIRST_COMPLETED)
                for future in done:
                    del running[future]
                    settle(future.result())
    return results


def _blocked(step: Step, results: Mapping[str, StepResult]) -> StepResult | None:
    """The result of a step whose input failed; None if no input did."""
    needs = sorted({ref.step for ref in step.inputs.values()})
    failed = next((need for need in needs if results[need].record is None), None)
    if failed is None:
        return None
    first = results[failed]
    return StepResult(
        step=step, error=first.error, blocked_by=first.blocked_by or failed, transient=first.transient
    )


def run_step(prepared: Prepared, store: Store, shared: bool) -> StepResult:
    try:
        return run_claimed(prepared, store) if shared else StepResult(step=prepared.step, record=build(prepared, store))
    except EngineryError as error:
        return StepResult(step=prepared.step, error=str(error), transient=error.transient)


def run_claimed(prepared: Prepared, store: Store) -> StepResult:
    """Build a step under its claim, unless another builder has done so meanwhile."""
    with claims.claimed(store.root / "claims" / prepared.key):
        record = store.record(prepared.key)  # the builder that held the claim before wrote it, unless it failed or died
        if record is not None:
            store.point(record)
            return StepResult(step=prepared.step, record=record, reused=True)
        with claims.quiet(exclusive=prepared.step.exclusive):
            return StepResult(step=prepared.step, record=build(prepared, store))


def build(prepared: Prepared, store: Store) -> Record:
    """Run one step and write its record. Inputs are hashed before the stage reads them."""
    started, step = time.monotonic(), prepared.step
    inputs = {name: store.verified(blob) for name, blob in prepared.inputs.items()}
    with store.workspace() as folder:
        if step.stage in STAGES:
            outputs, facts, peak = run_stage(step, inputs, folder)
        else:
            outputs, facts, peak = judged(prepared, inputs, folder), {}, 0
        blobs = {name: store.put(path) for name, path in sorted(outputs.items())}
    record = Record(
        key=prepared.key,
        stage=step.stage,
        subject=step.subject,
        key_inputs=prepared.key_inputs,
        outputs=blobs,
        facts=facts,
        duration_s=round(time.monotonic() - started, 3),
        peak_rss_bytes=peak,
    )
    return store.write_record(record)


def judged(prepared: Prepared, inputs: Mapping[str, Path], folder: Path) -> dict[str, Path]:
    """The one stage that needs no process: metrics against thresholds."""
    params, metrics = prepared.step.params, json.loads(inputs["metrics.json"].read_bytes())
    verdict = judge(
        metrics,
        TASKS[metrics["task"]].rules,
        Thresholds(**params["thresholds"]),
        row=params["row"],
        evaluated=params["evaluated"],
        digests={name: blob.digest for name, blob in prepared.inputs.items()},
    )
    path = folder / "verdict.json"
    path.write_bytes(verdicts.dump(verdict))
    return {"verdict.json": path}
