"""Say of each step whether it can be reused or why it must be built: what `enginery plan` shows and `build` acts on."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Any

from pipelines.onnx_graph.external_data import SUFFIX
from pipelines.plan.graph import Graph, Ref, RowPlan, Step
from pipelines.stage import VERSIONS
from pipelines.store.files import key_of
from pipelines.store.store import Blob, Record, Store

REVISION = "source_digest"  # the parameter of an export that its model's files decide
FORCED = "measured again as asked"  # the words of a step of which nothing changed (Store.ask_again)


class Cause(StrEnum):
    """Why a step is stale, as a person would sort it."""

    NEVER_BUILT = "never built"
    UPSTREAM = "upstream"  # a step that it takes from is built first
    MODEL = "model"  # the model's files changed
    INPUTS = "inputs"  # a step that it takes from gave other bytes
    TOOLCHAIN = "toolchain"  # another version of a compiler or library
    SETTINGS = "settings"  # the matrix, a stage's version, what judges
    LOST = "lost"  # its outputs are no longer in the store
    FORCED = "forced"  # a person wants it measured again
    UNPUBLISHED = "unpublished"  # of a release, no step: what is built is not what was published last


@dataclass(frozen=True, kw_only=True)
class Reason:
    """One cause, and the words that a person reads."""

    cause: Cause
    words: str  # "toolchain.openvino: 2026.3 -> 2026.4"
    step: str = ""  # UPSTREAM: the step that is built first


@dataclass(frozen=True, kw_only=True)
class Staleness:
    """What will happen to a step: it is reused where it has a `record`; otherwise `reasons` says why it is built."""

    record: Record | None = None
    reasons: tuple[Reason, ...] = ()

    @property
    def own(self) -> tuple[Reason, ...]:
        """The reasons that lie in the step itself: why it would be built even if nothing upstream were."""
        return tuple(reason for reason in self.reasons if reason.cause is not Cause.UPSTREAM)


def cache_key_inputs(step: Step, inputs: Mapping[str, str]) -> dict[str, Any]:
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


def state_of(step: Step, store: Store, output: Callable[[Ref], Blob | None]) -> Staleness:
    """Whether a step can be reused, given what its inputs are now (see inputs_of)."""
    blobs = inputs_of(step, output)
    waiting = dict.fromkeys(ref.step for name, ref in step.inputs.items() if name not in blobs)
    if waiting:
        return Staleness(
            reasons=tuple(
                Reason(cause=Cause.UPSTREAM, words=f"{step_id} is built first", step=step_id) for step_id in waiting
            )
        )
    key_inputs = store.current(cache_key_inputs(step, {name: blob.digest for name, blob in blobs.items()}))
    record = store.record(key_of(key_inputs))
    if record is not None:
        return Staleness(record=record)
    latest = store.latest(step.stage, step.subject)
    if latest is None:
        return Staleness(reasons=(Reason(cause=Cause.NEVER_BUILT, words="never built"),))
    before = {**latest.key_inputs}
    forced = before.pop("attempt", 0) != key_inputs.pop("attempt", 0)
    if changed := changes(before, key_inputs):
        return Staleness(reasons=tuple(changed))
    lost = Reason(cause=Cause.LOST, words="its outputs are no longer in the store")
    return Staleness(reasons=(Reason(cause=Cause.FORCED, words=FORCED) if forced else lost,))


def ask_again(step: Step, store: Store, output: Callable[[Ref], Blob | None]) -> None:
    """Have a step made once more whose inputs are all there."""
    blobs = inputs_of(step, output)
    store.ask_again(cache_key_inputs(step, {name: blob.digest for name, blob in blobs.items()}))


def changes(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[Reason]:
    """What differs between two sets of key_inputs: "params.thresholds.max_ndcg_drop: 0.005 -> 0.001"."""
    return [
        Reason(cause=_cause(place), words=f"{place}{words}") for place, words in _differences(dict(old), dict(new), "")
    ]


def _differences(old: Any, new: Any, place: str) -> Iterator[tuple[str, str]]:
    if isinstance(old, Mapping) and isinstance(new, Mapping):
        for name in sorted(old.keys() | new.keys()):
            yield from _differences(old.get(name), new.get(name), f"{place}.{name}" if place else str(name))
        return
    if isinstance(old, list | tuple) and isinstance(new, list | tuple):
        old, new = list(old), list(new)
    if old != new:
        yield place, " changed" if str(new).startswith("sha256:") else f": {old} -> {new}"


def _cause(place: str) -> Cause:
    if place == f"params.{REVISION}":
        return Cause.MODEL
    return {"inputs": Cause.INPUTS, "toolchain": Cause.TOOLCHAIN}.get(place.partition(".")[0], Cause.SETTINGS)


def not_here(plan: RowPlan, found: Mapping[str, Staleness]) -> str | None:
    """Why this machine does nothing for a row: it cannot build it, or a worker does and has not finished it yet."""
    if plan.built_by is not None and plan.verdict is not None and found[plan.verdict.step].record is None:
        return f"built by worker {plan.built_by.host}, which has not finished it yet"
    return plan.refusal


def ours(graph: Graph, found: Mapping[str, Staleness]) -> Graph:
    """The same graph with only the steps that this machine reuses or builds: not those of a worker."""
    last = [p.shards or p.verdict for p in graph.rows if p.shards is not None or not not_here(p, found)]
    return graph.closure(ref.step for ref in last if ref is not None)


def states(graph: Graph, store: Store, again: Collection[str] = ()) -> dict[str, Staleness]:
    """The state of every step of the graph as the store is now; the steps `again` as if they were asked for again."""
    found: dict[str, Staleness] = {}

    def output(ref: Ref) -> Blob | None:
        record = found[ref.step].record
        return record.outputs.get(ref.output) if record else None

    for step in graph.steps.values():
        found[step.id] = state_of(step, store, output)
        if found[step.id].record is not None and step.id in again:
            found[step.id] = Staleness(reasons=(Reason(cause=Cause.FORCED, words=FORCED),))
    return found
