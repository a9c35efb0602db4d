"""The factory as Dagster assets: a signature, one call, and what a person wants to see. Building does not belong here.

Partitions: models, models x precisions, and rows, each one static key; mappings are written out from the matrix.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import dagster as dg

from pipelines.checks import GATE, gate_result, table
from pipelines.graph import Graph, Ref, RowPlan
from pipelines.image import describe
from pipelines.resources import Factory
from pipelines.run import Outcome
from pipelines.store import Record, Store


class RowPartitions(dg.StaticPartitionsDefinition):
    """Rows, each run tagged with what its worker must be."""

    def __init__(self, graph: Graph) -> None:
        self._tags = {
            plan.row.name: {
                "enginery/model": plan.row.model.name,
                "enginery/sku": plan.row.sku.name,
                "enginery/precision": str(plan.row.precision),
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
        "toolchain": dg.MetadataValue.json(dict(record.ingredients["toolchain"])),
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


def factory_assets(graph: Graph) -> list[dg.AssetsDefinition]:
    """The assets of one matrix. Rows that this machine cannot build are partitions too, skipped with the reason."""
    by_row: dict[str, RowPlan] = {plan.row.name: plan for plan in graph.rows}
    typed_of: dict[str, Ref] = {}
    rows_of_typed: dict[str, list[str]] = {}
    rows_of_model: dict[str, list[str]] = {}
    for name, plan in by_row.items():
        rows_of_model.setdefault(plan.row.model.name, []).append(name)
        if plan.typed is not None and plan.typed.step.startswith("quantize/"):
            key = plan.typed.step.removeprefix("quantize/")
            typed_of[key] = plan.typed
            rows_of_typed.setdefault(key, []).append(name)
    models = dg.StaticPartitionsDefinition(list(rows_of_model))
    typed_partitions = dg.StaticPartitionsDefinition(list(typed_of))
    rows = RowPartitions(graph)
    model_to_rows = dg.StaticPartitionMapping(rows_of_model)
    rows_to_model = dg.StaticPartitionMapping({row: model for model, names in rows_of_model.items() for row in names})
    model_to_typed = dg.StaticPartitionMapping(
        {
            model: [key for key, names in rows_of_typed.items() if set(names) & set(rows_of_model[model])]
            for model in rows_of_model
        }
    )

    def one(outcomes: dict[str, Outcome], step_id: str) -> Record:
        record = outcomes[step_id].record
        assert record is not None  # `bring` raised otherwise
        return record

    @dg.asset(partitions_def=models, group_name="factory", kinds={"onnx", "torch"})
    def fp32_onnx(context: dg.AssetExecutionContext, factory: Factory) -> dg.MaterializeResult[None]:
        """The model as float32 ONNX with pooling inside, and its golden outputs."""
        step = f"export/{context.partition_key}"
        record = one(factory.bring(context, graph, step), step)
        return dg.MaterializeResult(
            metadata=shown(record, factory.workshop().store, *record.outputs),
            data_version=version(record),
        )

    @dg.asset(
        partitions_def=typed_partitions,
        deps=[dg.AssetDep(fp32_onnx, partition_mapping=model_to_typed)],
        group_name="factory",
        kinds={"onnx", "nvidia"},
    )
    def typed_onnx(context: dg.AssetExecutionContext, factory: Factory) -> dg.MaterializeResult[None]:
        """The ONNX with a precision written in, by NVIDIA Model Optimizer."""
        ref = typed_of[context.partition_key]
        record = one(factory.bring(context, graph, ref.step), ref.step)
        return dg.MaterializeResult(
            metadata=shown(record, factory.workshop().store, *record.outputs),
            data_version=version(record),
        )

    def built_here(context: dg.AssetExecutionContext, wanted: Callable[[RowPlan], Ref | None]) -> Ref | None:
        plan = by_row[context.partition_key]
        if plan.refusal is not None:
            context.log.warning("%s is skipped: %s", plan.row.name, plan.refusal)
        return wanted(plan)

    @dg.asset(
        partitions_def=rows,
        deps=[
            dg.AssetDep(fp32_onnx, partition_mapping=model_to_rows),
            dg.AssetDep(typed_onnx, partition_mapping=dg.StaticPartitionMapping(rows_of_typed)),
        ],
        output_required=False,
        group_name="factory",
        kinds={"tensorrt", "openvino"},
    )
    def engine(context: dg.AssetExecutionContext, factory: Factory):  # type: ignore[no-untyped-def]
        """What a compiler made for one SKU. Skipped, with the reason, where this machine cannot build it."""
        ref = built_here(context, lambda plan: plan.engine)
        if ref is None:
            return
        record = one(factory.bring(context, graph, ref.step), ref.step)
        yield dg.MaterializeResult(
            metadata=shown(record, factory.workshop().store, *record.outputs),
            data_version=version(record),
        )

    @dg.asset(
        partitions_def=rows,
        deps=[engine],
        check_specs=[GATE],
        output_required=False,
        group_name="factory",
        kinds={"json"},
    )
    def verdict(context: dg.AssetExecutionContext, factory: Factory):  # type: ignore[no-untyped-def]
        """The gate's judgement of one engine: metrics, thresholds and the digests judged."""
        ref = built_here(context, lambda plan: plan.verdict)
        if ref is None:
            return
        record = one(factory.bring(context, graph, ref.step), ref.step)
        store = factory.workshop().store
        said = json.loads(store.verified(record.outputs["verdict.json"]).read_bytes())
        metrics = {check["name"]: check["value"] for check in said["checks"] if isinstance(check["value"], int | float)}
        yield dg.MaterializeResult(
            metadata={
                **metrics,
                "gate": dg.MetadataValue.md(table(said)),
                **{f"{name} digest": digest for name, digest in said["digests"].items() if name.startswith("engine")},
                "engine size_bytes": engine_size(said, store),
                "report": dg.MetadataValue.path(
                    Path(factory.dist).absolute() / by_row[context.partition_key].row.model.name / "report.html"
                ),
                **shown(record, store, "verdict.json"),
            },
            data_version=dg.DataVersion(record.outputs["verdict.json"].digest),
            check_results=[gate_result(context.partition_key, said)],
        )

    @dg.asset(
        partitions_def=models,
        deps=[dg.AssetDep(verdict, partition_mapping=rows_to_model)],
        group_name="factory",
        kinds={"yaml"},
    )
    def manifest(context: dg.AssetExecutionContext, factory: Factory) -> dg.MaterializeResult[None]:
        """model_manifest.yaml and the image context: the profiles whose verdict passed. The report lies beside it."""
        made = factory.package(graph, context.partition_key)
        return dg.MaterializeResult(
            metadata={
                "profiles": dg.MetadataValue.md("\n".join(f"- {row}" for row in made.shipped)),
                "not shipped": dg.MetadataValue.md(
                    "\n".join(f"- {row}: {'; '.join(why)}" for row, why in sorted((made.left_out or {}).items()))
                ),
                "digest": made.manifest_digest,
                "report": dg.MetadataValue.url((made.folder / "report.html").absolute().as_uri()),
            },
            data_version=dg.DataVersion(made.manifest_digest),
        )

    @dg.asset(partitions_def=models, deps=[manifest], group_name="factory", kinds={"docker"})
    def image(context: dg.AssetExecutionContext, factory: Factory) -> dg.MaterializeResult[None]:
        """The container images of a model, by digest."""
        made = factory.images(graph, context.partition_key)
        listed = "\n\n".join(f"```\n{describe(image)}\n```" for image in made.images)
        return dg.MaterializeResult(
            metadata={"images": dg.MetadataValue.md(listed), "notes": "; ".join(made.notes)},
            data_version=dg.DataVersion(" ".join(image.manifest_digest for image in made.images)),
        )

    return [fp32_onnx, typed_onnx, engine, verdict, manifest, image]
