"""Run the steps of a graph: each stale one in a process of its own, its outputs into the store, its record last."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Collection, Mapping
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipelines.store import claims
from pipelines.gate import judge
from pipelines.errors import EngineryError, StageCrashed
from pipelines.plan.graph import Graph, Ref, Step
from pipelines.plan.staleness import ask_again, cache_key_inputs, inputs_of, state_of
from pipelines.stage import STAGES
from pipelines.store.files import canonical, key_of
from pipelines.store.store import Blob, Record, Store
from pipelines.gate.thresholds import Thresholds

LOG_TAIL_LINES = 15
# The same hash order in every process, and nothing sent anywhere.
STAGE_ENVIRONMENT = {
    "PYTHONHASHSEED": "0",
    "DO_NOT_TRACK": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "ORT_DISABLE_TELEMETRY": "1",
}


@dataclass(frozen=True, kw_only=True)
class StepResult:
    """What became of one step."""

    step: Step
    record: Record | None = None  # None: it failed
    reused: bool = False
    error: str | None = None
    blocked_by: str | None = None  # the step that failed, where it is not this one
    transient: bool = False  # the failure may pass by itself

    @property
    def built(self) -> bool:
        return self.record is not None and not self.reused


Listener = Callable[[str, Step, StepResult | None], None]  # ("started" | "finished", step, result)


def run(
    graph: Graph,
    store: Store,
    *,
    jobs: int = 2,
    listen: Listener = lambda *_: None,
    shared: bool = False,
    again: Collection[str] = (),
) -> dict[str, StepResult]:
    """Bring every step of the graph up to date. A failed step fails those that take from it, and no others.

    shared: other builders work in the same store at the same time; each step is claimed (pipelines.store.claims).
    again: steps that are run though nothing changed.
    """
    results: dict[str, StepResult] = {}
    to_ask = set(again)

    def output(ref: Ref) -> Blob | None:
        record = results[ref.step].record
        return record.outputs.get(ref.output) if record else None

    pending = dict(graph.steps)
    running: dict[Future[StepResult], Step] = {}
    with ThreadPoolExecutor(max_workers=jobs) as pool:
        while pending or running:
            for step in list(pending.values()):
                needs = {ref.step for ref in step.inputs.values()}
                if not needs <= results.keys():
                    continue
                failed = [need for need in sorted(needs) if results[need].record is None]
                if failed:
                    first = results[failed[0]]
                    blocked_by = first.blocked_by or failed[0]
                    results[step.id] = StepResult(
                        step=step, error=first.error, blocked_by=blocked_by, transient=first.transient
                    )
                    del pending[step.id]
                    listen("finished", step, results[step.id])
                    continue
                if step.id in to_ask:
                    to_ask.remove(step.id)
                    ask_again(step, store, output)
                state = state_of(step, store, output)
                if state.record is not None:
                    store.point(state.record)
                    results[step.id] = StepResult(step=step, record=state.record, reused=True)
                    del pending[step.id]
                    listen("finished", step, results[step.id])
                    continue
                if len(running) >= jobs or any(s.exclusive for s in running.values()) or (step.exclusive and running):
                    continue
                del pending[step.id]
                listen("started", step, None)
                blobs = inputs_of(step, output)
                running[pool.submit(attempt, step, blobs, store, shared)] = step
            if not running:
                continue
            done, _ = wait(running, return_when=FIRST_COMPLETED)
            for future in done:
                step = running.pop(future)
                results[step.id] = future.result()
                listen("finished", step, results[step.id])
    return results


def attempt(step: Step, blobs: Mapping[str, Blob], store: Store, shared: bool = False) -> StepResult:
    try:
        key_inputs = store.current(cache_key_inputs(step, {name: blob.digest for name, blob in blobs.items()}))
        if not shared:
            return StepResult(step=step, record=build(step, blobs, key_inputs, store))
        key = key_of(key_inputs)
        with claims.claimed(store.root / "claims" / key):
            record = store.record(key)  # who held the claim before has built it, unless it failed or died
            if record is not None:
                store.point(record)
                return StepResult(step=step, record=record, reused=True)
            with claims.quiet(exclusive=step.exclusive):
                return StepResult(step=step, record=build(step, blobs, key_inputs, store))
    except EngineryError as error:
        return StepResult(step=step, error=str(error), transient=error.transient)


def build(step: Step, blobs: Mapping[str, Blob], key_inputs: Mapping[str, Any], store: Store) -> Record:
    """Run one step and record what it made. Inputs are hashed before the stage sees them; the record comes last."""
    started = time.monotonic()
    inputs = {name: store.verified(blob) for name, blob in blobs.items()}
    with store.workspace() as folder:
        if step.stage in STAGES:
            outputs, facts, peak = in_process(step, inputs, folder)
        else:
            outputs, facts, peak = judged(step, blobs, inputs, folder), {}, 0
        stored = {name: store.put(path) for name, path in sorted(outputs.items())}
    record = Record(
        key=key_of(key_inputs),
        stage=step.stage,
        subject=step.subject,
        key_inputs=key_inputs,
        outputs=stored,
        facts=facts,
        duration_s=round(time.monotonic() - started, 3),
        peak_rss_bytes=peak,
    )
    return store.write_record(record)


def judged(step: Step, blobs: Mapping[str, Blob], inputs: Mapping[str, Path], folder: Path) -> dict[str, Path]:
    """The one stage that needs no process: metrics against thresholds."""
    verdict = judge.judge(
        json.loads(inputs["metrics.json"].read_bytes()),
        Thresholds(**step.params["thresholds"]),
        row=step.params["row"],
        evaluated=step.params["evaluated"],
        digests={name: blob.digest for name, blob in blobs.items()},
    )
    path = folder / "verdict.json"
    path.write_bytes(verdict.to_json())
    return {"verdict.json": path}


def in_process(step: Step, inputs: Mapping[str, Path], folder: Path) -> tuple[dict[str, Path], dict[str, Any], int]:
    """Run a stage as `python -m pipelines.stage`: a fresh process, so that its bytes depend on its request alone."""
    output_dir = folder / "out"
    output_dir.mkdir()
    request = folder / "request.json"
    request.write_bytes(
        canonical(
            {
                "stage": step.stage,
                "subject": step.subject,
                "params": dict(step.params),
                "inputs": {name: str(path) for name, path in inputs.items()},
                "output_dir": str(output_dir),
            }
        )
    )
    log = folder / "log"
    with log.open("wb") as sink:
        process = subprocess.Popen(
            [sys.executable, "-m", "pipelines.stage", str(request)],
            stdin=subprocess.DEVNULL,
            stdout=sink,
            stderr=subprocess.STDOUT,
            cwd=folder,
            env={**os.environ, **STAGE_ENVIRONMENT},
        )
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    answer_path = folder / "result.json"
    if not answer_path.exists():
        raise StageCrashed(f"{step.id} {ended(process.returncode)}; the end of its log:\n{tail(log)}")
    answer = json.loads(answer_path.read_text())
    if "error" in answer:
        failed = EngineryError(f"{step.id}: {answer['error']}")
        failed.transient = bool(answer.get("transient"))
        raise failed
    outputs = {name: Path(path) for name, path in answer["outputs"].items()}
    missing = [name for name, path in outputs.items() if not path.is_file()]
    if missing:
        raise StageCrashed(f"{step.id} named outputs that it did not write: {', '.join(sorted(missing))}")
    return outputs, answer["facts"], usage.ru_maxrss * 1024


def ended(code: int) -> str:
    if code < 0:
        name = signal.Signals(-code).name
        hint = " (out of memory?)" if name == "SIGKILL" else ""
        return f"was ended by {name}{hint}"
    return f"ended with exit code {code} and no answer"


def tail(log: Path) -> str:
    lines = log.read_text(errors="replace").splitlines()
    return "\n".join(f"    {line}" for line in lines[-LOG_TAIL_LINES:])
