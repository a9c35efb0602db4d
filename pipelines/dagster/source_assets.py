"""What the factory does not make but depends on, as observable source assets: model revisions, the toolchain, settings.

Their data versions are what makes the other assets stale, partition by partition. Building does not belong here.
"""

import warnings
from collections.abc import Iterator, Mapping

import dagster as dg
from dagster._core.definitions.data_version import DATA_VERSION_TAG, extract_data_version_from_entry

from pipelines.dagster.lineage import Cell, Lineage, lineage, revisions, toolchains
from pipelines.dagster.resources import Factory
from pipelines.plan.graph import Graph

MODEL_REVISION, TOOLCHAIN, SETTINGS = "model_revision", "toolchain", "settings"
GROUP = "sources"
warnings.filterwarnings("ignore", category=dg.BetaWarning)  # said in every process; its version is pinned


def setting_of(cell: Cell) -> str:
    """The partition of `settings` that a partition of an asset depends on: "engine:tiny__l40s__fp8__tp1"."""
    return ":".join(cell)


def versions(graph: Graph) -> dict[str, dict[str, str]]:
    """The data version of every partition of every source asset, as it is now."""
    cells = lineage(graph)
    return {
        MODEL_REVISION: revisions(graph),
        TOOLCHAIN: {part: spelled(found) for part, found in toolchains(cells).items()},
        SETTINGS: {setting_of(cell): made.settings_version for cell, made in cells.items()},
    }


def spelled(found: Mapping[str, str]) -> str:
    return ", ".join(f"{name} {version}" for name, version in sorted(found.items()))


def source_assets(partitions: Mapping[str, dg.StaticPartitionsDefinition]) -> list[dg.SourceAsset]:
    """The three source assets; `Observe` in the UI asks each for its versions."""

    def now(factory: Factory, asset: str) -> dg.DataVersionsByPartition:
        return dg.DataVersionsByPartition(versions(factory.graph())[asset])

    @dg.observable_source_asset(partitions_def=partitions[MODEL_REVISION], group_name=GROUP)
    def model_revision(factory: Factory) -> dg.DataVersionsByPartition:
        """The files of each model: a folder's digest, a hub's commit, a bucket's etags."""
        return now(factory, MODEL_REVISION)

    @dg.observable_source_asset(partitions_def=partitions[TOOLCHAIN], group_name=GROUP)
    def toolchain(factory: Factory) -> dg.DataVersionsByPartition:
        """The installed versions that each stage and compiler depends on."""
        return now(factory, TOOLCHAIN)

    @dg.observable_source_asset(partitions_def=partitions[SETTINGS], group_name=GROUP)
    def settings(factory: Factory) -> dg.DataVersionsByPartition:
        """What the matrix and the judging code say of each partition: shapes, precisions, thresholds, SKU facts."""
        return now(factory, SETTINGS)

    return [model_revision, toolchain, settings]


def observe(instance: dg.DagsterInstance, graph: Graph) -> dict[Cell, tuple[str | None, str]]:
    """Record every version that is not the one recorded last; returns them: (asset, partition) -> (was, is)."""
    changed: dict[Cell, tuple[str | None, str]] = {}
    cells = {setting_of(cell): made for cell, made in lineage(graph).items()}
    for asset, by_partition in versions(graph).items():
        known = recorded(instance, asset, by_partition)
        for partition, version in by_partition.items():
            before = known.get(partition)
            if before == version:
                continue
            changed[asset, partition] = (before, version)
            instance.report_runless_asset_event(
                dg.AssetObservation(
                    asset_key=asset,
                    partition=partition,
                    metadata=dict(_shown(asset, before, version, cells.get(partition))),
                    tags={DATA_VERSION_TAG: version},
                )
            )
    return changed


def recorded(instance: dg.DagsterInstance, asset: str, partitions: Mapping[str, str]) -> dict[str, str]:
    """The data version that was recorded last for each partition."""
    known = {}
    for partition in partitions:
        record = instance.get_latest_data_version_record(dg.AssetKey(asset), True, partition)
        version = extract_data_version_from_entry(record.event_log_entry) if record is not None else None
        if version is not None:
            known[partition] = version.value
    return known


def _shown(
    asset: str, before: str | None, version: str, made: Lineage | None
) -> Iterator[tuple[str, str | dg.MetadataValue]]:
    yield "version", version
    if before is not None:
        yield "was", before
    if made is not None and asset == SETTINGS:
        yield "settings", dg.MetadataValue.json(made.settings)
