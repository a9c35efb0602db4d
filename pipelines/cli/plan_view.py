"""What `enginery plan` shows: each row's fate and worker, what is built and why, and what it will probably take."""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from rich.console import Console
from rich.markup import escape

from pipelines.inspect.text import table
from pipelines.plan.estimate import Estimate, Totals, estimates, totals
from pipelines.plan.graph import Graph, RowPlan
from pipelines.plan.layout import target_of
from pipelines.plan.staleness import Staleness, not_here, ours
from pipelines.plan.workers import differences, spec_here
from pipelines.store.store import Store

MAX_REASONS = 3  # of a step, on the screen; --json has all


@dataclass(frozen=True, kw_only=True)
class View:
    """A plan with everything that is shown of it."""

    graph: Graph
    states: Mapping[str, Staleness]
    ours: frozenset[str]  # the steps that this machine reuses or builds; the others are a worker's
    estimates: Mapping[str, Estimate | None]
    totals: Totals
    free_bytes: int  # where the store lies
    memory_bytes: int  # of this machine

    @classmethod
    def of(cls, graph: Graph, states: Mapping[str, Staleness], store: Store, *, jobs: int, memory_bytes: int) -> View:
        mine = frozenset(ours(graph, states).steps)
        found = estimates(graph, {step: state for step, state in states.items() if step in mine}, store)
        existing = next(folder for folder in (store.root, *store.root.parents) if folder.exists())
        return cls(
            graph=graph,
            states=states,
            ours=mine,
            estimates=found,
            totals=totals(graph, found, jobs),
            free_bytes=shutil.disk_usage(existing).free,
            memory_bytes=memory_bytes,
        )

    def steps_of(self, plan: RowPlan) -> list[str]:
        """What a row needs that is not there yet."""
        if plan.verdict is None:
            return []
        return [step for step in self.graph.closure([plan.verdict.step]).steps if self.states[step].record is None]

    def fate(self, plan: RowPlan) -> str:
        """ "reuse", "judge" (its engine is there), "build" or "skip"."""
        if plan.engine is None or not_here(plan, self.states):
            return "skip"
        if self.states[plan.engine.step].record is None:
            return "build"
        return "judge" if self.steps_of(plan) else "reuse"

    def why_not(self, plan: RowPlan) -> str | None:
        """Why a row is skipped; of one that a worker builds also what is new for that worker."""
        why = not_here(plan, self.states)
        if plan.shards is not None:
            made = "are there" if self.states[plan.shards.step].record is not None else "are made here"
            return f"{why}; its {plan.row.tp} shards {made}"
        if why is None or plan.built_by is None or plan.verdict is None:
            return why
        reasons = dict.fromkeys(
            reason
            for step in self.graph.closure([plan.verdict.step]).steps
            if step not in self.ours and self.states[step].record is None
            for reason in why_of(self.states[step])[0]
        )
        apart = differences(plan.built_by, spec_here(plan.built_by.spec.worker, ()))
        if apart:
            reasons[f"it may not find the ONNX of this machine ({', '.join(apart)}): install the same versions"] = None
        return "; ".join([why, *reasons])


def worker_of(plan: RowPlan) -> str:
    """Where a row is built: here, by a worker that registered, or what a worker must be for it."""
    if plan.built_by is not None:
        return f"{plan.built_by.host}, since {plan.built_by.time[:16]}"
    if plan.refusal is None:
        return "here"
    row, sku = plan.row, plan.row.sku
    if sku.kind == "cpu":
        return f"a CPU like {sku.name}"
    if sku.compiler == "tensorrt" or row.tp > 1:
        return f"{row.tp} × {sku.product} GPU"
    return f"any, with enginery[{sku.compiler}]"


def show(console: Console, view: View) -> None:
    """Rows, then the steps that will run and why, then what it takes."""
    colour = {"skip": "yellow", "build": "green", "judge": "cyan", "reuse": "dim"}
    fates = {plan.row.name: view.fate(plan) for plan in view.graph.rows}
    rows = [
        (
            plan.row.name,
            fates[plan.row.name],
            worker_of(plan),
            time_of(_sum(view, view.steps_of(plan))) if fates[plan.row.name] in ("build", "judge") else "",
            view.why_not(plan) or "",
        )
        for plan in view.graph.rows
    ]
    head, *lines = table([("row", "plan", "worker", "time", ""), *rows])
    console.print(f"[bold]{head}[/]")
    for line, row in zip(lines, rows, strict=True):
        console.print(f"[{colour[row[1]]}]{escape(line)}[/]")
    if view.estimates:
        console.print("\n[bold]To build, and why[/]")
        for step_id, guess in view.estimates.items():
            reasons, after = why_of(view.states[step_id])
            said = "; ".join(part for part in (cost_of(guess), after) if part)
            console.print(f"  {step_id}  [dim]{said}[/]")
            for reason in reasons:
                console.print(f"      {escape(reason)}")
    counts = Counter(fates.values())
    said = ", ".join(f"{counts[fate]} {word}" for fate, word in WORDS.items() if counts[fate])
    console.print(f"\n{len(view.graph.rows)} rows: {said}.")
    reused = len(view.ours) - len(view.estimates)
    console.print(f"{len(view.estimates)} steps to build, {reused} reused. {sharing(view.graph)}")
    for line in sums(view):
        console.print(line)


def why_of(state: Staleness) -> tuple[list[str], str]:
    """A step's own reasons, and, where it has none, after which stages it comes: what is built anew upstream."""
    own = [reason.words for reason in state.own]
    if not own:
        stages = dict.fromkeys(reason.step.partition("/")[0] for reason in state.reasons)
        return [], f"after {', '.join(stages)}"
    more = [f"and {len(own) - MAX_REASONS} more"] if len(own) > MAX_REASONS else []
    return [*own[:MAX_REASONS], *more], ""


WORDS = {
    "build": "to build",
    "judge": "to judge anew with the engine there is",
    "reuse": "up to date",
    "skip": "skipped on this machine",
}


def sums(view: View) -> list[str]:
    """The last lines: time, memory and disk, and what stands in the way."""
    if not view.estimates:
        return ["Nothing to build."]
    found = view.totals
    if len(found.unknown) == len(view.estimates):
        return ["No estimate of time, memory and disk: no stage of these has run with this store."]
    lines = [
        f"About {time_of(found.wall_s)} ({time_of(found.work_s)} one after the other), "
        f"{found.peak_rss_bytes / 2**30:.1f} GiB of memory at most, {found.output_bytes / 1e6:.0f} MB of new files."
    ]
    if found.unknown:
        stages = sorted({step.partition("/")[0] for step in found.unknown})
        lines.append(f"Not counted: {len(found.unknown)} steps ({', '.join(stages)}) of which none ever ran here.")
    if found.peak_rss_bytes > view.memory_bytes > 0:
        lines.append(f"[red]This machine has {view.memory_bytes / 2**30:.1f} GiB: build with fewer --jobs.[/]")
    if found.output_bytes > view.free_bytes:
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


def _sum(view: View, steps: list[str]) -> float:
    return sum(guess.duration_s for step in steps if (guess := view.estimates[step]) is not None)


def sharing(graph: Graph) -> str:
    """How many steps of each stage serve all the rows: "1 export, 3 quantize, 9 compile for 21 rows"."""
    counts = Counter(step.stage for step in graph.steps.values())
    built = sum(plan.refusal is None for plan in graph.rows)
    named = ("export", "quantize", *(["shard"] if counts["shard"] else []), "compile", "measure")
    stages = ", ".join(f"{counts[stage]} {stage}" for stage in named)
    return f"{stages} for {built} rows."


def as_json(view: View) -> dict[str, Any]:
    """The plan for programs: rows with their fate, worker and steps; steps with their state, reasons and estimate."""
    return {
        "rows": [
            {
                "row": plan.row.name,
                "sku": plan.row.sku.name,
                "target": target_of(plan.row),
                "number_of_gpus": plan.row.tp if plan.row.sku.kind == "gpu" else 0,
                "plan": view.fate(plan),
                "worker": worker_of(plan),
                "refusal": view.why_not(plan),
                "engine": plan.engine.step if plan.engine else None,
                "shards": plan.shards.step if plan.shards else None,
                "verdict": plan.verdict.step if plan.verdict else None,
                "to_build": view.steps_of(plan),
            }
            for plan in view.graph.rows
        ],
        "steps": [
            {
                "step": step_id,
                "state": "reuse" if state.record is not None else "build" if step_id in view.ours else "elsewhere",
                "why": [reason.words for reason in state.reasons],
                "last_duration_s": state.record.duration_s if state.record is not None else None,
                "estimate": asdict(guess) if (guess := view.estimates.get(step_id)) else None,
            }
            for step_id, state in view.states.items()
        ],
        "totals": asdict(view.totals),
    }
