"""A small fleet for the tests of Dagster, sensors and workers: one tiny model, rows for several kinds of hardware."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from msgspec import structs

from pipelines.build.project import Project
from pipelines.dagster.lineage import AssetPartition, Stale, lineage, stale_partitions
from pipelines.plan.cache_key import inputs_of, prepare
from pipelines.plan.graph import Ref
from pipelines.plan.staleness import states
from pipelines.store.store import Blob

if TYPE_CHECKING:  # dagster takes a second to import: the functions that use it do
    import dagster as dg

    from pipelines.dagster.resources import Factory

MATRIX = """
schema_version: 1
models:
  tiny:
    task: embed
    source: ./tiny-bert
    release: "1.2.3"
    max_tokens: 64
    shapes: {min: [1, 1], opt: [2, 16], max: [4, 64]}
    calibration: {num_texts: 16, max_tokens: 64}
    golden: {num_texts: 32}
    retrieval: stdlib-docstrings
    runtimes: [rtx, cpu]
skus:
  h100:
    {compute_capability: "9.0", pci_ids: ["2330"], product: h100-80gb-hbm3, memory_gib: 80, gpus_per_node: 8,
     precisions: [fp16], compiler: tensorrt}
  l40s:
    {compute_capability: "8.9", pci_ids: ["26b9"], product: l40s, memory_gib: 48, gpus_per_node: 8,
     precisions: [fp16], compiler: tensorrt-rtx}
  cpu-x86-64: {cpu_arch: x86_64, cpu_features: [], precisions: [fp32], compiler: onnx}
gates:
  embed: {fp16: {min_realized_precision: 0.1}}
build:
  - {models: [tiny], skus: [h100, l40s], precisions: [fp16], tp: [1]}
  - {models: [tiny], skus: [cpu-x86-64], precisions: [fp32], tp: [1]}
"""
NOT_BUILT = {("image", "tiny"), ("publication", "tiny")}  # in tests that have no container engine and no destination
CPU, L40S, H100 = "tiny__cpu-x86-64__fp32__tp1", "tiny__l40s__fp16__tp1", "tiny__h100__fp16__tp1"


@dataclass(frozen=True, kw_only=True)
class Fleet:
    """A matrix with its model in a folder of its own, and where its results go."""

    folder: Path
    to: str | None = None  # where it publishes to
    images_fetch_from: str | None = None

    @classmethod
    def at(cls, folder: Path, model: Path, matrix: str = MATRIX) -> Fleet:
        shutil.copytree(model, folder / "tiny-bert")
        (folder / "matrix.yaml").write_text(matrix)
        return cls(folder=folder)

    @property
    def factory(self) -> Factory:
        from pipelines.dagster.resources import Factory

        matrix, store, dist = (str(self.folder / name) for name in ("matrix.yaml", "store", "dist"))
        return Factory(
            matrix=matrix,
            store=store,
            dist=dist,
            jobs=2,
            retry_after_s=0,
            publish_to=self.to,
            repository=self.images_fetch_from,
        )

    def repository(self) -> dg.RepositoryDefinition:
        from pipelines.dagster.definitions import build_defs

        return build_defs(self.factory).get_repository_def()

    def edit(self, old: str, new: str) -> None:
        """Change the matrix, as a person would."""
        path = self.folder / "matrix.yaml"
        text = path.read_text()
        assert old in text
        path.write_text(text.replace(old, new))

    def prompt(self, prefix: str) -> None:
        """A new revision of the model: another prompt before queries."""
        prompts = {"prompts": {"query": prefix, "passage": "passage: "}}
        (self.folder / "tiny-bert" / "config_sentence_transformers.json").write_text(json.dumps(prompts))

    def remake(self, step_id: str, output: str) -> None:
        """Record a step as built anew from its inputs of now, with another file as this output."""
        project = self.factory.project()
        graph, store = project.graph(), project.store
        found, step = states(graph, store), graph.steps[step_id]

        def now(ref: Ref) -> Blob | None:
            record = found[ref.step].record
            return record.outputs.get(ref.output) if record else None

        prepared = prepare(step, inputs_of(step, now), store)
        latest = store.latest(step.stage, step.subject)
        assert latest is not None
        another = store.put_bytes(store.path(latest.outputs[output].digest).read_bytes() + b" ")
        outputs = {**latest.outputs, output: another}
        store.write_record(structs.replace(latest, key=prepared.key, key_inputs=prepared.key_inputs, outputs=outputs))

    def partitions(self) -> list[AssetPartition]:
        return list(self.factory.plan().lineages)

    def materialize(self, instance: dg.DagsterInstance, *partitions: tuple[str, str]) -> None:
        """Run these partitions one after the other, each as a run of its own."""
        import dagster as dg

        repository = self.repository()
        job = repository.get_implicit_global_asset_job_def()
        for asset, key in partitions:
            selected = job.get_subset(asset_selection={dg.AssetKey(asset)})
            assert selected.execute_in_process(instance=instance, partition_key=key).success


def stale(project: Project) -> dict[AssetPartition, Stale]:
    """Every partition that is to be built, as the plan says it."""
    plan = project.plan()
    return stale_partitions(plan, lineage(plan.graph))


def new_release(folder: Path, distribution: str, version: str) -> Path:
    """A folder for sys.path in which a distribution is installed in another version."""
    info = folder / f"{distribution.replace('-', '_')}-{version}.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {distribution}\nVersion: {version}\n")
    return folder
