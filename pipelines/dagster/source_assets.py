"""What the factory does not make but depends on, as observable source assets: model revisions, the toolchain, settings.

Their data versions are what makes the other assets stale in the UI, partition by partition.
https://docs.dagster.io/guides/build/assets/asset-versioning-and-caching
"""

import warnings
from collections.abc import Iterator, Mapping

import dagster as dg

# Private, no public name: the tag under which an observation holds its data version.
from dagster._core.definitions.data_version import DATA_VERSION_TAG

from pipelines.dagster.lineage import MODEL_REVISION, SETTINGS, TOOLCHAIN, AssetPartition, Lineage, source_versions
from pipelines.dagster.resources import Factory

GROUP = "sources"
warnings.filterwarnings("ignore", category=dg.BetaWarning)  # Dagster warns in every process; its version is pinned


def source_assets(partitions: Mapping[str, dg.StaticPartitionsDefinition]) -> list[dg.SourceAsset]:
    """The three source assets; `Observe` in the UI asks each for its versions."""

    def versions(factory: Factory, asset: str) -> dg.DataVersionsByPartition:
        return dg.DataVersionsByPartition(source_versions(factory.plan().lineages)[asset])

    @dg.observable_source_asset(partitions_def=partitions[MODEL_REVISION], group_name=GROUP)
    def model_revision(factory: Factory) -> dg.DataVersionsByPartition:
        """The files of each model: a folder's digest, a hub's commit, a bucket's etags."""
        return versions(factory, MODEL_REVISION)

    @dg.observable_source_asset(partitions_def=partitions[TOOLCHAIN], group_name=GROUP)
    def toolchain(factory: Factory) -> dg.DataVersionsByPartition:
        """The installed versions that each stage and compiler depends on."""
        return versions(factory, TOOLCHAIN)

    @dg.observable_source_asset(partitions_def=partitions[SETTINGS], group_name=GROUP)
    def settings(factory: Factory) -> dg.DataVersionsByPartition:
        """What the matrix and the stages' code say of each partition: shapes, precisions, thresholds, SKU facts."""
        return versions(factory, SETTINGS)

    return [model_revision, toolchain, settings]


def observe(
    instance: dg.DagsterInstance, lineages: Mapping[AssetPartition, Lineage]
) -> dict[AssetPartition, tuple[str | None, str]]:
    """Record every version that is not the one recorded last. Returns what changed: the versions before and now."""
    changed: dict[AssetPartition, tuple[str | None, str]] = {}
    settings = {str(partition): entry.settings for partition, entry in lineages.items()}
    for asset, versions in source_versions(lineages).items():
        recorded = recorded_versions(instance, asset)
        for key, version in versions.items():
            before = recorded.get(key)
            if before == version:
                continue
            changed[AssetPartition(asset, key)] = (before, version)
            instance.report_runless_asset_event(
                dg.AssetObservation(
                    asset_key=asset,
                    partition=key,
                    metadata=dict(_metadata(before, version, settings[key] if asset == SETTINGS else None)),
                    tags={DATA_VERSION_TAG: version},
                )
            )
    return changed


def recorded_versions(instance: dg.DagsterInstance, asset: str) -> dict[str, str]:
    """The data version that was recorded last for each partition of a source asset."""
    # Private, no public name: one query for all partitions. The public calls take one query for each of them.
    tags = instance.event_log_storage.get_latest_tags_by_partition(
        dg.AssetKey(asset), dg.DagsterEventType.ASSET_OBSERVATION, [DATA_VERSION_TAG]
    )
    return {partition: of_partition[DATA_VERSION_TAG] for partition, of_partition in tags.items()}


def _metadata(
    before: str | None, version: str, settings: Mapping[str, object] | None
) -> Iterator[tuple[str, str | dg.MetadataValue]]:
    yield "version", version
    if before is not None:
        yield "was", before
    if settings is not None:
        yield "settings", dg.MetadataValue.json(settings)
