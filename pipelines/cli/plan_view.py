"""What `enginery plan` shows: each row's action and worker, what is built and why, and what it will probably take."""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from rich.console import Console
from rich.markup import escape

from pipelines.cli.terminal import print_table
from pipelines.matrix.compilers import COMPILERS
from pipelines.plan.estimate import Estimate, Totals, estimates, totals
from pipelines.plan.graph import Graph, RowPlan
from pipelines.plan.staleness import Plan, Staleness, not_here, ours
from pipelines.plan.workers import differences, spec_here
from pipelines.store.store import Store

MAX_REASONS = 3  # of a step, on the screen; --json has all


@dataclass(frozen=True, kw_only=True)
class View:
    """A plan with everything that is shown of it."""

    plan: Plan
    ours: frozenset[str]  # the steps that this machine reuses or builds; the others are a worker's
    estimates: Mapping[str, Estimate | None]
    totals: Totals
    free_bytes: int  # where the store lies
    memory_bytes: int  # of this machine

    @classmethod
    def of(cls, plan: Plan, store: Store, *, jobs: int, memory_bytes: int) -> View:
        mine = frozenset(ours(plan).steps)
        guesses = estimates(plan.graph, {step: state for step, state in plan.states.items() if step in mine}, store)
        existing = next(folder for folder in (store.root, *store.root.parents) if folder.exists())
        return cls(
            plan=plan,
            ours=mine,
            estimates=guesses,
            totals=totals(plan.graph, guesses, jobs),
            free_bytes=shutil.disk_usage(existing).free,
            memory_bytes=memory_bytes,
        )

    def missing_steps(self, row: RowPlan) -> list[str]:
        """What a row needs that is not there yet."""
        if row.verdict is None:
            return []
        steps = self.plan.graph.closure([row.verdict.step]).steps
        return [step for step in steps if self.plan.states[step].record is None]

    def action(self, row: RowPlan) -> str:
        """What is planned for a row: "reuse", "judge" (its engine is there), "build" or "skip"."""
        if row.engine is None or not_here(row, self.plan.states):
            return "skip"
        if self.plan.record(row.engine) is None:
            return "build"
        return "judge" if self.missing_steps(row) else "reuse"

    def refusal(self, row: RowPlan) -> str | None:
        """Why a row is skipped; of one that a worker builds also what is new for that worker."""
        why = not_here(row, self.plan.states)
        if row.shards is not None:
            where = "are there" if self.plan.record(row.shards) is not None else "are made here"
            return f"{why}; its {row.row.tp} shards {where}"
        if why is None or row.built_by is None:
            return why
        theirs = (step for step in self.missing_steps(row) if step not in self.ours)
        reasons = dict.fromkeys(reason for step in theirs for reason in reasons_of(self.plan.states[step])[0])
        other_versions = differences(row.built_by, spec_here(row.built_by.spec.worker, ()))
        if other_versions:
            versions = ", ".join(other_versions)
            reasons[f"it may not find the ONNX of this machine ({versions}): install the same versions"] = None
        return "; ".join([why, *reasons])


def worker_of(planned: RowPlan) -> str:
    """Where a row is built: here, by a worker that registered, or what a worker must be for it."""
    row, sku = planned.row, planned.row.sku
    if planned.built_by is not None:
        return f"{planned.built_by.host}, since {planned.built_by.time[:16]}"
    if planned.refusal is None:
        return "here"
    if sku.kind == "cpu":
        return f"a CPU like {sku.name}"
    if COMPILERS[sku.compiler].needs_gpu or row.tp > 1:
        return f"{row.tp} × {sku.product} GPU"
    return f"any, with enginery[{sku.compiler}]"


def show(console: Console, view: View) -> None:
    """Rows, then the steps that will run and why, then what it takes."""
    graph, states = view.plan.graph, view.plan.states
    colour = {"skip": "yellow", "build": "green", "judge": "cyan", "reuse": "dim"}
    actions = {row.row.name: view.action(row) for row in graph.rows}
    rows = [
        (
            row.row.name,
            actions[row.row.name],
            worker_of(row),
            time_of(seconds)
            if (seconds := _seconds(view, row)) and actions[row.row.name] in ("build", "judge")
            else "",
            view.refusal(row) or "",
        )
        for row in graph.rows
    ]
    print_table(console, ("row", "plan", "worker", "time", ""), rows, [colour[action] for action in actions.values()])
    if view.estimates:
        console.print("\n[bold]To build, and why[/]")
        for step_id, guess in view.estimates.items():
            reasons, after = reasons_of(states[step_id])
            cost = "; ".join(part for part in (cost_of(guess), after) if part)
            console.print(f"  {step_id}  [dim]{cost}[/]")
            for reason in reasons:
                console.print(f"      {escape(reason)}")
    counts = Counter(actions.values())
    sums = ", ".join(f"{counts[action]} {label}" for action, label in ACTIONS.items() if counts[action])
    console.print(f"\n{len(graph.rows)} rows: {sums}.")
    reused = len(view.ours) - len(view.estimates)
    console.print(f"{len(view.estimates)} steps to build, {reused} reused. {sharing(graph)}")
    for line in totals_of(view):
        console.print(line)


def reasons_of(state: Staleness) -> tuple[list[str], str]:
    """A step's own reasons, and, where it has none, after which stages it comes: what is built anew upstream."""
    own = [reason.words for reason in state.own]
    if not own:
        stages = dict.fromkeys(reason.step.partition("/")[0] for reason in state.reasons)
        return [], f"after {', '.join(stages)}"
    more = [f"and {len(own) - MAX_REASONS} more"] if len(own) > MAX_REASONS else []
    return [*own[:MAX_REASONS], *more], ""


ACTIONS = {
    "build": "to build",
    "judge": "to judge anew with the engine there is",
    "reuse": "up to date",
    "skip": "skipped on this machine",
}


def totals_of(view: View) -> list[str]:
    """The last lines: time, memory and disk, and what stands in the way."""
    if not view.estimates:
        return ["Nothing to build."]
    totals = view.totals
    if len(totals.unknown) == len(view.estimates):
        return ["No estimate of time, memory and disk: no stage of these has run with this store."]
    lines = [
        f"About {time_of(totals.wall_s)} ({time_of(totals.work_s)} one after the other), "
        f"{totals.peak_rss_bytes / 2**30:.1f} GiB of memory at most, {totals.output_bytes / 1e6:.0f} MB of new files."
    ]
    if totals.unknown:
        stages = sorted({step.partition("/")[0] for step in totals.unknown})
        lines.append(f"Not counted: {len(totals.unknown)} steps ({', '.join(stages)}) of which none ever ran here.")
    if totals.peak_rss_bytes > view.memory_bytes > 0:
        lines.append(f"[red]This machine has {view.memory_bytes / 2**30:.1f} GiB: build with fewer --jobs.[/]")
    if totals.output_bytes > view.free_bytes:
        lines.append(f"[red]Only {view.free_bytes / 1e6:.0f} MB are free for the store.[/]")
    return lines


def cost_of(guess: Estimate | None) -> str:
    if guess is None:
        return ""
    memory = f", {guess.peak_rss_bytes / 2**30:.1f} GiB" if guess.peak_rss_bytes else ""
    return f"about {time_of(guess.duration_s)}{memory}, {guess.output_bytes / 1e6:.1f} MB ({guess.basis})"


def time_of(seconds: float) -> str:
    """ "40 s", "3 min 20 s", "2 h 5 min"."""
    if seconds < 10:
        return f"{seconds:.1f} s"
    if seconds < 100:
        return f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


def _seconds(view: View, row: RowPlan) -> float:
    steps = view.missing_steps(row)
    return sum(guess.duration_s for step in steps if (guess := view.estimates[step]) is not None)


def sharing(graph: Graph) -> str:
    """How many steps of each stage serve all the rows: "1 export, 3 quantize, 9 compile for 21 rows"."""
    counts = Counter(step.stage for step in graph.steps.values())
    built = sum(plan.refusal is None for plan in graph.rows)
    stages = ("export", "quantize", *(["shard"] if counts["shard"] else []), "compile", "measure")
    sums = ", ".join(f"{counts[stage]} {stage}" for stage in stages)
    return f"{sums} for {built} rows."


def as_json(view: View) -> dict[str, Any]:
    """The plan for programs: rows with what is planned for them; steps with their state, reasons and estimate."""
    graph, states = view.plan.graph, view.plan.states
    return {
        "rows": [
            {
                "row": row.row.name,
                "sku": row.row.sku.name,
                "target": row.row.sku.target,
                "number_of_gpus": row.row.tp if row.row.sku.kind == "gpu" else 0,
                "plan": view.action(row),
                "worker": worker_of(row),
                "refusal": view.refusal(row),
                "engine": row.engine.step if row.engine else None,
                "shards": row.shards.step if row.shards else None,
                "verdict": row.verdict.step if row.verdict else None,
                "to_build": view.missing_steps(row),
            }
            for row in graph.rows
        ],
        "steps": [
            {
                "step": step_id,
                "state": "reuse" if state.record is not None else "build" if step_id in view.ours else "elsewhere",
                "why": [reason.words for reason in state.reasons],
                "last_duration_s": state.record.duration_s if state.record is not None else None,
                "estimate": asdict(guess) if (guess := view.estimates.get(step_id)) else None,
            }
            for step_id, state in states.items()
        ],
        "totals": asdict(view.totals),
    }
