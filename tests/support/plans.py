"""Plans for tests: the workers that make them, the records that a build leaves, and the steps that are stale."""

from __future__ import annotations

from pipelines.matrix.values import Worker
from pipelines.plan.graph import Graph
from pipelines.plan.staleness import Staleness, cache_key_inputs, states
from pipelines.store.files import key_of
from pipelines.store.store import Record, Store

WORKER = Worker(
    cpu_arch="x86_64",
    cpu_features=frozenset({"avx2", "avx512_bf16"}),
    compilers=frozenset({"tensorrt-rtx", "openvino", "onnx"}),
)

HERE = Worker(cpu_arch="x86_64", cpu_features=frozenset(), compilers=frozenset({"tensorrt-rtx", "onnx"}))


def built(plan: Graph, store: Store, without: tuple[str, ...] = ()) -> None:
    """Records for every step, as a build would leave them."""
    outputs: dict[str, Record] = {}
    for step in plan.steps.values():
        blobs = {name: outputs[ref.step].outputs[ref.output] for name, ref in step.inputs.items()}
        key_inputs = cache_key_inputs(step, {name: blob.digest for name, blob in blobs.items()})
        key = key_of(key_inputs)
        wanted = {ref.output for other in plan.steps.values() for ref in other.inputs.values() if ref.step == step.id}
        made = {name: store.put_bytes(f"{key} {name}".encode()) for name in wanted or {"verdict.json"}}
        outputs[step.id] = Record(
            key=key,
            stage=step.stage,
            subject=step.subject,
            key_inputs=key_inputs,
            outputs=made,
            facts={},
            duration_s=1,
            peak_rss_bytes=0,
        )
        if step.id not in without:
            store.write_record(outputs[step.id])


def stale(plan: Graph, store: Store) -> set[str]:
    return {step_id for step_id, state in states(plan, store).items() if state.record is None}


def words(state: Staleness) -> list[str]:
    return [reason.words for reason in state.reasons]
