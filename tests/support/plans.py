"""Plans for tests: the workers that make them, the records that a build leaves, and the steps that are stale."""

from __future__ import annotations

from pipelines.matrix.values import Worker
from pipelines.plan.cache_key import prepare
from pipelines.plan.graph import Graph
from pipelines.plan.staleness import Staleness, states
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
        inputs = {name: outputs[ref.step].outputs[ref.output] for name, ref in step.inputs.items()}
        prepared = prepare(step, inputs, store)
        wanted = {ref.output for other in plan.steps.values() for ref in other.inputs.values() if ref.step == step.id}
        blobs = {name: store.put_bytes(f"{prepared.key} {name}".encode()) for name in wanted or {"verdict.json"}}
        outputs[step.id] = Record(
            key=prepared.key,
            stage=step.stage,
            subject=step.subject,
            key_inputs=prepared.key_inputs,
            outputs=blobs,
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
