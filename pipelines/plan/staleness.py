"""Say of each step whether it can be reused or why it must be built: what `enginery plan` shows and `build` acts on."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, replace
from typing import Any

from pipelines.onnx_graph.external_data import SUFFIX
from pipelines.plan.graph import Graph, Ref, RowPlan, Step
from pipelines.stage import VERSIONS
from pipelines.store.store import Blob, Record, Store, step_key

AGAIN = "measured again as asked"  # the reason of a step of which nothing changed (Store.ask_again)


@dataclass(frozen=True, kw_only=True)
class State:
    """What will happen to a step: `record` is there when it is reused; otherwise `why` says what changed."""

    record: Record | None = None
    why: tuple[str, ...] = ()


def ingredients(step: Step, inputs: Mapping[str, str]) -> dict[str, Any]:
    """Everything that decides a step's bytes; `inputs` are digests by name. Paths of this machine are left out."""
    return {
        "stage": step.stage,
        "version": VERSIONS.get(step.stage, 1),
        "params": {name: value for name, value in step.params.items() if name != "source_base"},
        "toolchain": dict(step.toolchain),
        "inputs": dict(inputs),
    }


def inputs_of(step: Step, output: Callable[[Ref], Blob | None]) -> dict[str, Blob]:
    """A step's inputs as they are now. An ONNX file that keeps its weights beside it brings them along.

    output: what an output of another step is now; None where it is not built, or where that step made none.
    """
    found = {name: output(ref) for name, ref in step.inputs.items()}
    for name, ref in step.inputs.items():
        found[name + SUFFIX] = output(replace(ref, output=ref.output + SUFFIX))
    return {name: blob for name, blob in found.items() if blob is not None}


def state_of(step: Step, store: Store, output: Callable[[Ref], Blob | None]) -> State:
    """Whether a step can be reused, given what its inputs are now (see inputs_of)."""
    blobs = inputs_of(step, output)
    waiting = dict.fromkeys(ref.step for name, ref in step.inputs.items() if name not in blobs)
    if waiting:
        return State(why=tuple(f"{step_id} is built first" for step_id in waiting))
    made_of = store.current(ingredients(step, {name: blob.digest for name, blob in blobs.items()}))
    record = store.record(step_key(made_of))
    if record is not None:
        return State(record=record)
    latest = store.latest(step.stage, step.subject)
    if latest is None:
        return State(why=("never built",))
    before = {**latest.ingredients}
    asked = before.pop("attempt", 0) != made_of.pop("attempt", 0)
    return State(why=tuple(changes(before, made_of)) or (AGAIN if asked else "its outputs are no longer in the store",))


def ask_again(step: Step, store: Store, output: Callable[[Ref], Blob | None]) -> None:
    """Have a step made once more whose inputs are all there."""
    blobs = inputs_of(step, output)
    store.ask_again(ingredients(step, {name: blob.digest for name, blob in blobs.items()}))


def changes(old: Any, new: Any, place: str = "") -> list[str]:
    """What differs between two sets of ingredients: "params.thresholds.max_ndcg_drop: 0.005 -> 0.001"."""
    if isinstance(old, Mapping) and isinstance(new, Mapping):
        return [
            line
            for name in sorted(old.keys() | new.keys())
            for line in changes(old.get(name), new.get(name), f"{place}.{name}" if place else str(name))
        ]
    if isinstance(old, list | tuple) and isinstance(new, list | tuple):
        old, new = list(old), list(new)
    if old == new:
        return []
    return [f"{place} changed" if str(new).startswith("sha256:") else f"{place}: {old} -> {new}"]


def not_here(plan: RowPlan, found: Mapping[str, State]) -> str | None:
    """Why this machine does nothing for a row: it cannot build it, or a worker does and has not finished it yet."""
    if plan.built_by is not None and plan.verdict is not None and found[plan.verdict.step].record is None:
        return f"built by worker {plan.built_by.host}, which has not finished it yet"
    return plan.refusal


def ours(graph: Graph, found: Mapping[str, State]) -> Graph:
    """The same graph with only the steps that this machine reuses or builds: not those of a worker."""
    last = [p.shards or p.verdict for p in graph.rows if p.shards is not None or not not_here(p, found)]
    return graph.closure(ref.step for ref in last if ref is not None)


def states(graph: Graph, store: Store, again: Collection[str] = ()) -> dict[str, State]:
    """The state of every step of the graph as the store is now; the steps `again` as if they were asked for again."""
    found: dict[str, State] = {}

    def output(ref: Ref) -> Blob | None:
        record = found[ref.step].record
        return record.outputs.get(ref.output) if record else None

    for step in graph.steps.values():
        state = state_of(step, store, output)
        found[step.id] = State(why=(AGAIN,)) if state.record is not None and step.id in again else state
    return found
