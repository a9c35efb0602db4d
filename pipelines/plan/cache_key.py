"""What a step's cache key is made of, and what the store has under it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from pipelines.onnx_graph.external_data import SUFFIX
from pipelines.plan.graph import Ref, Step
from pipelines.store.files import key_of
from pipelines.store.store import Blob, Record, Store

LOCAL = ("source_base",)  # parameters that are paths of this machine: no part of a key


@dataclass(frozen=True, kw_only=True)
class Prepared:
    """A step whose inputs are all there: what its key is made of, and the record under that key, if there is one."""

    step: Step
    inputs: Mapping[str, Blob]
    key_inputs: Mapping[str, Any]
    key: str
    record: Record | None


def cache_key_inputs(step: Step, inputs: Mapping[str, str], generation: int = 0) -> dict[str, Any]:
    """Everything that decides a step's bytes. inputs: name -> digest. generation: as Store.generation has it."""
    return {
        "stage": step.stage,
        "code": dict(step.code),
        "params": {name: value for name, value in step.params.items() if name not in LOCAL},
        "toolchain": dict(step.toolchain),
        "inputs": dict(inputs),
        **({"generation": generation} if generation else {}),
    }


def inputs_of(step: Step, output: Callable[[Ref], Blob | None]) -> dict[str, Blob]:
    """A step's inputs as they are now, by name. An ONNX file with external data brings that along.

    output: the blob of another step's output; None where that step is not built, or has no such output.
    """
    external = {name + SUFFIX: replace(ref, output=ref.output + SUFFIX) for name, ref in step.inputs.items()}
    blobs = {name: output(ref) for name, ref in {**step.inputs, **external}.items()}
    return {name: blob for name, blob in blobs.items() if blob is not None}


def prepare(step: Step, inputs: Mapping[str, Blob], store: Store, *, force: bool = False) -> Prepared:
    """The key of a step with these inputs, and its record. force: as if the step were forced (Store.force)."""
    generation = store.generation(step.stage, step.subject) + force
    key_inputs = cache_key_inputs(step, {name: blob.digest for name, blob in inputs.items()}, generation)
    key = key_of(key_inputs)
    return Prepared(step=step, inputs=inputs, key_inputs=key_inputs, key=key, record=store.record(key))
