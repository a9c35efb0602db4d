"""The factory as Dagster assets: a signature, one call, and what a person wants to see. Building does not belong here.

https://docs.dagster.io/guides/build/assets
"""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import dagster as dg

from pipelines.build.result import ModelResult
from pipelines.dagster.asset_checks import GATE, checks_table, gate_result
from pipelines.dagster.partitions import Partitions
from pipelines.dagster.resources import Factory, model_of
from pipelines.gate import verdict as verdicts
from pipelines.gate.verdict import Verdict
from pipelines.image.images import describe
from pipelines.publish.last_published import link
from pipelines.publish.to_bucket import Result
from pipelines.store.store import Record, Store

# Package again when a verdict or a setting changed and none is being made; rows for other machines may be missing.
FOLLOWS = dg.AutomationCondition.eager().without(~dg.AutomationCondition.any_deps_missing())
Rows = Iterator[dg.MaterializeResult[None]]  # nothing is yielded of a row that another machine builds


def fp32_onnx(context: dg.AssetExecutionContext, factory: Factory) -> dg.MaterializeResult[None]:
    """The model as float32 ONNX with pooling inside, and its golden outputs."""
    record = factory.build_step(context, f"export/{context.partition_key}")
    return dg.MaterializeResult(metadata=record_metadata(record, factory), data_version=data_version(record))


def typed_onnx(context: dg.AssetExecutionContext, factory: Factory) -> dg.MaterializeResult[None]:
    """The ONNX with a precision written in, by NVIDIA Model Optimizer."""
    record = factory.build_step(context, f"quantize/{context.partition_key}")
    return dg.MaterializeResult(metadata=record_metadata(record, factory), data_version=data_version(record))


def engine(context: dg.AssetExecutionContext, factory: Factory) -> Rows:
    """What a compiler made for one SKU. Skipped, with the reason, where this machine cannot build it."""
    record = factory.build_row(context, lambda plan: plan.engine)
    if record is not None:
        yield dg.MaterializeResult(metadata=record_metadata(record, factory), data_version=data_version(record))


def verdict(context: dg.AssetExecutionContext, factory: Factory) -> Rows:
    """The gate's judgement of one engine: metrics, thresholds and the digests judged."""
    record = factory.build_row(context, lambda plan: plan.verdict)
    if record is not None:
        judged = verdicts.load(Store(Path(factory.store)).verified(record.outputs["verdict.json"]).read_bytes())
        report = Path(factory.dist).absolute() / model_of(context) / "report.html"
        yield dg.MaterializeResult(
            metadata={
                **verdict_metadata(judged, factory),
                "report": dg.MetadataValue.path(report),
                **record_metadata(record, factory),
            },
            data_version=data_version(record),
            check_results=[gate_result(context.partition_key, judged)],
        )


def manifest(context: dg.AssetExecutionContext, factory: Factory) -> dg.MaterializeResult[None]:
    """model_manifest.yaml and the image context: the profiles whose verdict passed. The report lies beside it."""
    packaged = factory.package(context)
    return dg.MaterializeResult(
        metadata={
            "rows": rows_table(packaged),
            "num_profiles": len(packaged.shipped),
            "digest": packaged.manifest_digest,
            "report": dg.MetadataValue.url((packaged.folder / "report.html").absolute().as_uri()),
        },
        data_version=dg.DataVersion(packaged.manifest_digest),
    )


def image(context: dg.AssetExecutionContext, factory: Factory) -> dg.MaterializeResult[None]:
    """The container images of a model, by digest."""
    built = factory.images(context)
    text = "\n\n".join(f"```\n{describe(image)}\n```" for image in built.images)
    return dg.MaterializeResult(
        metadata={"images": dg.MetadataValue.md(text), "notes": "; ".join(built.notes)},
        data_version=dg.DataVersion(" ".join(image.manifest_digest for image in built.images)),
    )


def publication(context: dg.AssetExecutionContext, factory: Factory) -> dg.MaterializeResult[None]:
    """The release where others pull it from, put there as `enginery publish` does: readers see a whole one."""
    result = factory.publish(context)
    return dg.MaterializeResult(metadata=publication_metadata(result), data_version=dg.DataVersion(result.digest))


def factory_assets(partitions: Partitions) -> list[dg.AssetsDefinition]:
    """The assets of one matrix. Rows that this machine cannot build are partitions too, skipped with the reason.

    The definitions say which partitions there are; what is built is planned anew in each run.
    """

    def shared(name: str, pool: str, *kinds: str) -> dict[str, Any]:
        """What every declaration has. A pool bounds how many partitions are made at a time (docs/dagster.md)."""
        return {
            "partitions_def": partitions.of[name],
            "deps": partitions.deps(name),
            "group_name": "factory",
            "kinds": set(kinds),
            "pool": pool,
        }

    return [
        dg.asset(**shared("fp32_onnx", "export", "onnx", "torch"))(fp32_onnx),
        dg.asset(**shared("typed_onnx", "export", "onnx", "nvidia"))(typed_onnx),
        dg.asset(**shared("engine", "engine", "tensorrt", "openvino"), output_required=False)(engine),
        dg.asset(**shared("verdict", "measure", "json"), output_required=False, check_specs=[GATE])(verdict),
        dg.asset(**shared("manifest", "package", "yaml"), automation_condition=FOLLOWS)(manifest),
        dg.asset(**shared("image", "package", "docker"))(image),
        dg.asset(**shared("publication", "publish", "s3", "docker"))(publication),
    ]


def data_version(record: Record) -> dg.DataVersion:
    """What a step made, as one version: the digests of its outputs."""
    return dg.DataVersion(" ".join(blob.digest for _, blob in sorted(record.outputs.items())))


def record_metadata(record: Record, factory: Factory) -> dict[str, Any]:
    """What a step cost, its toolchain, digest and size of what it made, and the facts it reported."""
    metadata: dict[str, Any] = {
        "duration_s": record.duration_s,
        "peak_memory_mib": round(record.peak_rss_bytes / 2**20),
        "toolchain": dg.MetadataValue.json(dict(record.key_inputs["toolchain"])),
    }
    for name, blob in record.outputs.items():
        metadata |= {
            f"{name} digest": blob.digest,
            f"{name} size_bytes": blob.size_bytes,
            f"{name} path": dg.MetadataValue.path(Store(Path(factory.store)).path(blob.digest)),
        }
    if record.facts:
        metadata["facts"] = dg.MetadataValue.json(dict(record.facts))
    return metadata


def verdict_metadata(verdict: Verdict, factory: Factory) -> dict[str, Any]:
    """The metrics of a verdict, its checks, and the engines that it is about."""
    engines = {name: digest for name, digest in verdict.digests.items() if name.startswith("engine")}
    sizes = [Store(Path(factory.store)).path(digest).stat().st_size for digest in engines.values()]
    return {
        **{check.name: check.value for check in verdict.checks if check.value is not None},
        "gate": checks_table(verdict),
        **{f"{name} digest": digest for name, digest in engines.items()},
        "engine size_bytes": sum(sizes),
    }


def rows_table(packaged: ModelResult) -> dg.TableMetadataValue:
    """A line for each row of a model: shipped, or why not."""
    lines = [(row, "shipped", "") for row in packaged.shipped]
    lines += [(row, "left out", "; ".join(why)) for row, why in sorted(packaged.left_out.items())]
    records = [dg.TableRecord({"row": row, "state": state, "why": why}) for row, state, why in lines]
    columns = [dg.TableColumn(name, "string") for name in ("row", "state", "why")]
    return dg.MetadataValue.table(records, schema=dg.TableSchema(columns))


def publication_metadata(result: Result) -> dict[str, Any]:
    """What a publication did, and where to look at it."""
    columns = [dg.TableColumn(name, "string") for name in ("name", "digest")]
    names = [dg.TableRecord({"name": name, "digest": digest}) for name, digest in result.names.items()]
    return {
        "reference": result.reference,
        "digest": result.digest,
        "state": "now current" if result.moved else "was current already",
        **({"number": result.sequence} if result.sequence else {}),
        "blobs sent": result.uploaded,
        "bytes sent": result.uploaded_bytes,
        "blobs already there": result.reused,
        "names": dg.MetadataValue.table(names, schema=dg.TableSchema(columns)),
        "link": dg.MetadataValue.url(link(result.reference, os.environ)),
        "what is in it": dg.MetadataValue.md(f"`enginery inspect {result.reference}`"),
    }
