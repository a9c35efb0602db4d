"""Say of each step whether it can be reused or why it must be built: what `enginery plan` shows and `build` acts on."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Any

from pipelines.plan.cache_key import inputs_of, prepare
from pipelines.plan.graph import Graph, Ref, RowPlan, Step
from pipelines.store.store import Blob, Record, Store

REVISION = "source_digest"  # the parameter of an export that its model's files decide


class Cause(StrEnum):
    """Why a step is stale, as a person would sort it."""

    NEVER_BUILT = "never built"
    UPSTREAM = "upstream"  # a step that it takes from is built first
    MODEL = "model"  # the model's files changed
    INPUTS = "inputs"  # a step that it takes from gave other bytes
    TOOLCHAIN = "toolchain"  # another version of a compiler or library
    SETTINGS = "settings"  # the matrix, a stage's code, what judges
    LOST = "lost"  # its outputs are no longer in the store
    FORCED = "forced"  # a person wants it measured again
    UNPUBLISHED = "unpublished"  # of a release, no step: what is built is not what was published last


@dataclass(frozen=True, kw_only=True)
class Reason:
    """One cause, and the words that a person reads."""

    cause: Cause
    words: str  # "toolchain.openvino: 2026.3 -> 2026.4"
    step: str = ""  # UPSTREAM: the step that is built first


# Of a step whose key inputs did not change.
FORCED = Reason(cause=Cause.FORCED, words="measured again as asked")
LOST = Reason(cause=Cause.LOST, words="its outputs are no longer in the store")


@dataclass(frozen=True, kw_only=True)
class Staleness:
    """What will happen to a step: it is reused where it has a `record`; otherwise `reasons` says why it is built."""

    record: Record | None = None
    reasons: tuple[Reason, ...] = ()

    @property
    def own(self) -> tuple[Reason, ...]:
        """The reasons that lie in the step itself: why it would be built even if nothing upstream were."""
        return tuple(reason for reason in self.reasons if reason.cause is not Cause.UPSTREAM)


@dataclass(frozen=True, kw_only=True)
class Plan:
    """A graph and the state of each of its steps: computed once for a command, and passed on."""

    graph: Graph
    states: Mapping[str, Staleness]
    forced: frozenset[str] = frozenset()  # steps that are built though nothing changed

    def record(self, ref: Ref | None) -> Record | None:
        return self.states[ref.step].record if ref is not None else None

    def after(self, records: Mapping[str, Record | None], store: Store) -> Plan:
        """The plan once these steps were built; a step whose record is None failed, and is as stale as it was.

        A step of a worker may be there after all, now that what it takes from is built.
        """
        states: dict[str, Staleness] = {}
        for step in self.graph.steps.values():
            record = records.get(step.id) or self.states[step.id].record
            if record is not None:
                states[step.id] = Staleness(record=record)
            else:
                states[step.id] = self.states[step.id] if step.id in records else state_of(step, store, _output(states))
        return replace(self, states=states, forced=frozenset())


def plan(graph: Graph, store: Store, forced: Collection[str] = ()) -> Plan:
    return Plan(graph=graph, states=states(graph, store, forced), forced=frozenset(forced))


def states(graph: Graph, store: Store, forced: Collection[str] = ()) -> dict[str, Staleness]:
    """The state of every step as the store is now; of the steps `forced` as if they were forced (Store.force)."""
    by_step: dict[str, Staleness] = {}
    for step in graph.steps.values():
        by_step[step.id] = state_of(step, store, _output(by_step), force=step.id in forced)
    return by_step


def _output(states: Mapping[str, Staleness]) -> Callable[[Ref], Blob | None]:
    """What the outputs of these steps are now."""

    def output(ref: Ref) -> Blob | None:
        record = states[ref.step].record
        return record.outputs.get(ref.output) if record else None

    return output


def state_of(step: Step, store: Store, output: Callable[[Ref], Blob | None], *, force: bool = False) -> Staleness:
    """Whether a step can be reused, given what its inputs are now (see inputs_of)."""
    inputs = inputs_of(step, output)
    waiting = dict.fromkeys(ref.step for name, ref in step.inputs.items() if name not in inputs)
    if waiting:
        first = (Reason(cause=Cause.UPSTREAM, words=f"{step_id} is built first", step=step_id) for step_id in waiting)
        return Staleness(reasons=tuple(first))
    prepared = prepare(step, inputs, store, force=force)
    if prepared.record is not None:
        return Staleness(record=prepared.record)
    latest = store.latest(step.stage, step.subject)
    if latest is None:
        return Staleness(reasons=(Reason(cause=Cause.NEVER_BUILT, words="never built"),))
    reasons = changes(latest.key_inputs, prepared.key_inputs)
    forced = latest.key_inputs.get("generation") != prepared.key_inputs.get("generation")
    unchanged = FORCED if forced else LOST
    return Staleness(reasons=tuple(reasons) or (unchanged,))


def changes(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[Reason]:
    """What differs between two sets of key inputs: "params.thresholds.max_ndcg_drop: 0.005 -> 0.001"."""
    before, after = ({name: inputs[name] for name in inputs if name != "generation"} for inputs in (old, new))
    return [Reason(cause=_cause(place), words=words) for place, words in _differences(before, after, "")]


def _differences(old: Any, new: Any, place: str) -> Iterator[tuple[str, str]]:
    if isinstance(old, Mapping | None) and isinstance(new, Mapping | None):
        old, new = old or {}, new or {}
        for name in sorted(old.keys() | new.keys()):
            yield from _differences(old.get(name), new.get(name), f"{place}.{name}" if place else str(name))
        return
    if isinstance(old, list | tuple) and isinstance(new, list | tuple):
        old, new = list(old), list(new)
    if old != new:
        yield place, f"{place} changed" if str(new).startswith("sha256:") else f"{place}: {old} -> {new}"


def _cause(place: str) -> Cause:
    if place == f"params.{REVISION}":
        return Cause.MODEL
    return {"inputs": Cause.INPUTS, "toolchain": Cause.TOOLCHAIN}.get(place.partition(".")[0], Cause.SETTINGS)


def not_here(row: RowPlan, states: Mapping[str, Staleness]) -> str | None:
    """Why this machine does nothing for a row: it cannot build it, or a worker does and has not finished it yet."""
    if row.built_by is not None and row.verdict is not None and states[row.verdict.step].record is None:
        return f"built by worker {row.built_by.host}, which has not finished it yet"
    return row.refusal


def ours(plan: Plan) -> Graph:
    """The graph with only the steps that this machine reuses or builds: not those of a worker."""
    rows = plan.graph.rows
    last = [row.shards or row.verdict for row in rows if row.shards is not None or not not_here(row, plan.states)]
    return plan.graph.closure(ref.step for ref in last if ref is not None)
