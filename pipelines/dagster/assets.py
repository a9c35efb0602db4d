"""The factory as Dagster assets: a signature, one call, and what a person wants to see. Building does not belong here.

Partitions: models, models x precisions, and rows, each one static key; mappings are written out from the matrix.
"""

import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import dagster as dg

from pipelines.build.executor import StepResult
from pipelines.build.result import ModelResult
from pipelines.dagster.asset_checks import GATE, gate_result, table
from pipelines.dagster.lineage import Cell, code_version, lineage, toolchains
from pipelines.dagster.placement import SERVES, pod, queue, refusal
from pipelines.dagster.resources import Factory
from pipelines.dagster.source_assets import MODEL_REVISION, SETTINGS, TOOLCHAIN, setting_of
from pipelines.image.build import describe
from pipelines.plan import workers
from pipelines.plan.graph import Graph, Ref, RowPlan
from pipelines.plan.staleness import not_here, states
from pipelines.publish.last_published import link
from pipelines.publish.to_bucket import Result
from pipelines.store.store import Record, Store

# Package again when a verdict or a setting changed and none is being made; rows for other machines may be missing.
FOLLOWS = dg.AutomationCondition.eager().without(~dg.AutomationCondition.any_deps_missing())


class RowPartitions(dg.StaticPartitionsDefinition):
    """Rows, each run tagged with what its worker must be."""

    def __init__(self, graph: Graph) -> None:
        self._tags = {
            plan.row.name: {
                "enginery/model": plan.row.model.name,
                "enginery/sku": plan.row.sku.name,
                "enginery/precision": str(plan.row.precision),
                "dagster-celery/queue": queue(plan.row.sku.name),
                "dagster-k8s/config": json.dumps(pod(plan.row)),
            }
            for plan in graph.rows
        }
        super().__init__(list(self._tags))

    def get_tags_for_partition_key(self, partition_key: str) -> dict[str, str]:
        return {**super().get_tags_for_partition_key(partition_key), **self._tags[partition_key]}


def shown(record: Record, store: Store, *names: str) -> dict[str, Any]:
    """Digest, size and cost of what a step made, and the facts it reported."""
    metadata: dict[str, Any] = {
        "duration_s": record.duration_s,
        "peak_memory_mib": round(record.peak_rss_bytes / 2**20),
        "toolchain": dg.MetadataValue.json(dict(record.key_inputs["toolchain"])),
    }
    for name in names:
        blob = record.outputs[name]
        metadata |= {
            f"{name} digest": blob.digest,
            f"{name} size_bytes": blob.size_bytes,
            f"{name} path": dg.MetadataValue.path(store.path(blob.digest)),
        }
    if record.facts:
        metadata["facts"] = dg.MetadataValue.json(dict(record.facts))
    return metadata


def version(record: Record) -> dg.DataVersion:
    """What a step made, as one version: the digests of its outputs."""
    return dg.DataVersion(" ".join(blob.digest for _, blob in sorted(record.outputs.items())))


def engine_size(said: dict[str, Any], store: Store) -> int:
    """Of all engines that a verdict is about."""
    digests = [digest for name, digest in said["digests"].items() if name.startswith("engine")]
    return sum(store.path(digest).stat().st_size for digest in digests)


class Partitions:
    """The partitions of every asset, and which takes from which, written out from the lineage of a graph."""

    def __init__(self, graph: Graph) -> None:
        self.cells = lineage(graph)
        models = dg.StaticPartitionsDefinition([model.name for model in graph.models])
        rows = RowPartitions(graph)
        imaged = [key for asset, key in self.cells if asset == "image"]
        typed = dg.StaticPartitionsDefinition([key for asset, key in self.cells if asset == "typed_onnx"])
        self.of: dict[str, dg.StaticPartitionsDefinition] = {
            **dict.fromkeys(("fp32_onnx", "manifest", "publication"), models),
            "image": models
            if set(imaged) == set(models.get_partition_keys())
            else dg.StaticPartitionsDefinition(imaged),
            "typed_onnx": typed,
            **dict.fromkeys(("engine", "verdict"), rows),
            MODEL_REVISION: models,
            TOOLCHAIN: dg.StaticPartitionsDefinition(list(toolchains(self.cells))),
            SETTINGS: dg.StaticPartitionsDefinition([setting_of(cell) for cell in self.cells]),
        }

    def sources(self, asset: str, key: str) -> list[Cell]:
        """Everything that one partition takes from."""
        made = self.cells[asset, key]
        revision = [(MODEL_REVISION, key)] if made.revision else []
        return [*made.upstream, *revision, *((TOOLCHAIN, p) for p in made.parts), (SETTINGS, setting_of((asset, key)))]

    def deps(self, asset: str) -> list[dg.AssetDep]:
        """An asset's dependencies, with a mapping for each."""
        mappings: dict[str, dict[str, list[str]]] = {}
        for found, key in self.cells:
            if found == asset:
                for source, source_key in self.sources(asset, key):
                    mappings.setdefault(source, {}).setdefault(source_key, []).append(key)
        deps = []
        for source, mapping in mappings.items():
            same = self.of[source] is self.of[asset] and all(keys == [key] for key, keys in mapping.items())
            how = dg.IdentityPartitionMapping() if same else dg.StaticPartitionMapping(mapping)
            deps.append(dg.AssetDep(source, partition_mapping=how))
        return deps


def rows_table(made: ModelResult) -> dg.TableMetadataValue:
    """A line for each row of a model: shipped, or why not."""
    lines = [(row, "shipped", "") for row in made.shipped]
    lines += [(row, "left out", "; ".join(why)) for row, why in sorted((made.left_out or {}).items())]
    records = [dg.TableRecord({"row": row, "state": state, "why": why}) for row, state, why in lines]
    columns = [dg.TableColumn(name, "string") for name in ("row", "state", "why")]
    return dg.MetadataValue.table(records, schema=dg.TableSchema(columns))


def published(done: Result) -> dict[str, Any]:
    """What a publication did, and where to look at it."""
    columns = [dg.TableColumn(name, "string") for name in ("name", "digest")]
    names = [dg.TableRecord({"name": name, "digest": digest}) for name, digest in done.names.items()]
    return {
        "reference": done.reference,
        "digest": done.digest,
        "state": "now current" if done.moved else "was current already",
        **({"number": done.sequence} if done.sequence else {}),
        "blobs sent": done.uploaded,
        "bytes sent": done.uploaded_bytes,
        "blobs already there": done.reused,
        "names": dg.MetadataValue.table(names, schema=dg.TableSchema(columns)),
        "link": dg.MetadataValue.url(link(done.reference, os.environ)),
        "what is in it": dg.MetadataValue.md(f"`enginery inspect {done.reference}`"),
    }


def factory_assets(graph: Graph) -> list[dg.AssetsDefinition]:
    """The assets of one matrix. Rows that this machine cannot build are partitions too, skipped with the reason.

    The graph says which partitions there are; what is built is planned anew in each run.
    """
    parts = Partitions(graph)

    def one(outcomes: dict[str, StepResult], step_id: str) -> Record:
        record = outcomes[step_id].record
        assert record is not None  # `ensure_built` raised otherwise
        return record

    def asset(
        name: str,
        kinds: set[str],
        *,
        pool: str,
        output_required: bool = True,
        checks: Sequence[dg.AssetCheckSpec] = (),
        automation: dg.AutomationCondition[Any] | None = None,
    ) -> Callable[[Callable[..., Any]], dg.AssetsDefinition]:
        """What all declarations share. A pool bounds how many partitions are made at a time (docs/dagster.md)."""
        return dg.asset(
            name=name,
            partitions_def=parts.of[name],
            deps=parts.deps(name),
            code_version=code_version(name),
            group_name="factory",
            kinds=kinds,
            pool=pool,
            output_required=output_required,
            check_specs=checks,
            automation_condition=automation,
        )

    @asset("fp32_onnx", {"onnx", "torch"}, pool="export")
    def fp32_onnx(context: dg.AssetExecutionContext, factory: Factory) -> dg.MaterializeResult[None]:
        """The model as float32 ONNX with pooling inside, and its golden outputs."""
        graph, step = factory.graph(), f"export/{context.partition_key}"
        record = one(factory.ensure_built(context, graph, step), step)
        return dg.MaterializeResult(
            metadata=shown(record, factory.project().store, *record.outputs),
            data_version=version(record),
        )

    @asset("typed_onnx", {"onnx", "nvidia"}, pool="export")
    def typed_onnx(context: dg.AssetExecutionContext, factory: Factory) -> dg.MaterializeResult[None]:
        """The ONNX with a precision written in, by NVIDIA Model Optimizer."""
        graph, step = factory.graph(), f"quantize/{context.partition_key}"
        record = one(factory.ensure_built(context, graph, step), step)
        return dg.MaterializeResult(
            metadata=shown(record, factory.project().store, *record.outputs),
            data_version=version(record),
        )

    def built_here(
        context: dg.AssetExecutionContext, factory: Factory, graph: Graph, wanted: Callable[[RowPlan], Ref | None]
    ) -> Ref | None:
        plan = next(plan for plan in graph.rows if plan.row.name == context.partition_key)
        machine, store = workers.this_machine(), factory.project().store
        wrong = refusal(plan.row, machine, os.environ)
        if wrong is not None:
            raise dg.Failure(description=wrong, allow_retries=False)
        if SERVES in os.environ:  # a pod is a worker for one run, and a queue's worker may have been upgraded
            workers.register(store, workers.spec_here(machine, os.environ[SERVES].split(",")))
        elsewhere = not_here(plan, states(graph, store) if plan.built_by else {})
        if elsewhere is not None:
            context.log.warning("%s is skipped: %s", plan.row.name, elsewhere)
            return None
        return wanted(plan)

    @asset("engine", {"tensorrt", "openvino"}, pool="engine", output_required=False)
    def engine(context: dg.AssetExecutionContext, factory: Factory):  # type: ignore[no-untyped-def]
        """What a compiler made for one SKU. Skipped, with the reason, where this machine cannot build it."""
        graph = factory.graph()
        ref = built_here(context, factory, graph, lambda plan: plan.engine)
        if ref is None:
            return
        record = one(factory.ensure_built(context, graph, ref.step), ref.step)
        yield dg.MaterializeResult(
            metadata=shown(record, factory.project().store, *record.outputs),
            data_version=version(record),
        )

    @asset("verdict", {"json"}, pool="measure", checks=[GATE], output_required=False)
    def verdict(context: dg.AssetExecutionContext, factory: Factory):  # type: ignore[no-untyped-def]
        """The gate's judgement of one engine: metrics, thresholds and the digests judged."""
        graph = factory.graph()
        ref = built_here(context, factory, graph, lambda plan: plan.verdict)
        if ref is None:
            return
        record = one(factory.ensure_built(context, graph, ref.step), ref.step)
        store = factory.project().store
        said = json.loads(store.verified(record.outputs["verdict.json"]).read_bytes())
        metrics = {check["name"]: check["value"] for check in said["checks"] if isinstance(check["value"], int | float)}
        yield dg.MaterializeResult(
            metadata={
                **metrics,
                "gate": dg.MetadataValue.md(table(said)),
                **{f"{name} digest": digest for name, digest in said["digests"].items() if name.startswith("engine")},
                "engine size_bytes": engine_size(said, store),
                "report": dg.MetadataValue.path(
                    Path(factory.dist).absolute() / context.partition_key.partition("__")[0] / "report.html"
                ),
                **shown(record, store, "verdict.json"),
            },
            data_version=dg.DataVersion(record.outputs["verdict.json"].digest),
            check_results=[gate_result(context.partition_key, said)],
        )

    @asset("manifest", {"yaml"}, pool="package", automation=FOLLOWS)
    def manifest(context: dg.AssetExecutionContext, factory: Factory) -> dg.MaterializeResult[None]:
        """model_manifest.yaml and the image context: the profiles whose verdict passed. The report lies beside it."""
        made = factory.package(factory.graph(), context.partition_key)
        return dg.MaterializeResult(
            metadata={
                "rows": rows_table(made),
                "num_profiles": len(made.shipped),
                "digest": made.manifest_digest,
                "report": dg.MetadataValue.url((made.folder / "report.html").absolute().as_uri()),
            },
            data_version=dg.DataVersion(made.manifest_digest),
        )

    @asset("image", {"docker"}, pool="package")
    def image(context: dg.AssetExecutionContext, factory: Factory) -> dg.MaterializeResult[None]:
        """The container images of a model, by digest."""
        made = factory.images(factory.graph(), context.partition_key)
        listed = "\n\n".join(f"```\n{describe(image)}\n```" for image in made.images)
        return dg.MaterializeResult(
            metadata={"images": dg.MetadataValue.md(listed), "notes": "; ".join(made.notes)},
            data_version=dg.DataVersion(" ".join(image.manifest_digest for image in made.images)),
        )

    @asset("publication", {"s3", "docker"}, pool="publish")
    def publication(context: dg.AssetExecutionContext, factory: Factory) -> dg.MaterializeResult[None]:
        """The release where others pull it from, put there as `enginery publish` does: readers see a whole one."""
        done = factory.publish(context, context.partition_key)
        return dg.MaterializeResult(metadata=published(done), data_version=dg.DataVersion(done.digest))

    return [fp32_onnx, typed_onnx, engine, verdict, manifest, image, publication]
