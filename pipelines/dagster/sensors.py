"""What starts builds without a hand: a new model revision, a new toolchain. The plan says what is stale and why.

A sensor watches one source asset. It records the versions that it sees, so that the UI says what is stale and why, and
launches one backfill of exactly the partitions that are stale for its cause and come from a version that is new to it.
Its cursor is the versions it has seen: each is launched once, and a build that failed waits for a person or for another
version (docs/adr/0014). https://docs.dagster.io/guides/automate/sensors/
"""

import json
from collections.abc import Iterable, Mapping

import dagster as dg

# Private, no public name: partitions of several assets that are launched together, in the order of their dependencies.
from dagster._core.definitions.assets.graph.asset_graph_subset import AssetGraphSubset

from pipelines.dagster.lineage import ASSETS, MODEL_REVISION, TOOLCHAIN, AssetPartition, Stale, origins, source_versions
from pipelines.dagster.resources import Factory
from pipelines.dagster.source_assets import observe
from pipelines.errors import EngineryError
from pipelines.plan.staleness import Cause

# What a source asset's new version shows itself as. Other bytes of an input are what another model made of them.
CAUSES = {MODEL_REVISION: {Cause.MODEL, Cause.INPUTS}, TOOLCHAIN: {Cause.TOOLCHAIN}}
NAMES = {MODEL_REVISION: "model", TOOLCHAIN: "toolchain"}  # of the cause, in a backfill's tag
WHY = "enginery/why"
CAUSE = "enginery/cause"
MAX_TAG = 255  # characters, of what a person reads in the list of runs
INTERVAL_S = 30


def rebuild_sensor(name: str, source: str, description: str) -> dg.SensorDefinition:
    @dg.sensor(
        name=name,
        description=description,
        asset_selection=dg.AssetSelection.assets(*ASSETS),
        minimum_interval_seconds=INTERVAL_S,
        default_status=dg.DefaultSensorStatus.RUNNING,
    )
    def evaluate(context: dg.SensorEvaluationContext, factory: Factory) -> dg.RunRequest | dg.SkipReason:
        try:
            current = factory.plan()
            changed = observe(context.instance, current.lineages)
            stale = factory.stale(current)
        except EngineryError as error:
            return dg.SkipReason(str(error))
        for partition, (before, now) in changed.items():
            context.log.info("%s of %s: %s -> %s", partition.asset, partition.key, before, now)
        versions, seen = source_versions(current.lineages)[source], seen_versions(context.cursor)
        new = {key for key, version in versions.items() if seen.get(key) != version}
        rebuilt = rebuilt_without_a_hand(stale, source, publishes=factory.destination is not None)
        comes_from = origins(current.lineages, source)
        launched = {partition: why for partition, why in rebuilt.items() if comes_from[partition] & new}
        if unknown := [str(partition) for partition in launched if not is_defined(context.repository_def, partition)]:
            return dg.SkipReason(f"{', '.join(sorted(unknown))}: new in the matrix; reload the definitions")
        context.update_cursor(json.dumps(versions))
        if launched:
            tags = {CAUSE: NAMES[source], WHY: reasons_text(launched.values())}
            return dg.RunRequest.for_asset_graph_subset(subset(context.repository_def, launched), tags=tags)
        if rebuilt:
            return dg.SkipReason("what is due was launched already; materialize it by hand to try again")
        return dg.SkipReason(f"{len(stale)} partitions are stale, none of them for a new {NAMES[source]}")

    return evaluate


def seen_versions(cursor: str | None) -> dict[str, str]:
    """The versions that a cursor holds; none if there is no cursor, or one of an earlier form."""
    try:
        versions = json.loads(cursor or "{}")
    except ValueError:
        return {}
    return {str(key): str(version) for key, version in versions.items()} if isinstance(versions, dict) else {}


def rebuilt_without_a_hand(
    stale: Mapping[AssetPartition, Stale], source: str, *, publishes: bool
) -> dict[AssetPartition, Stale]:
    """What is stale for a source asset's sake, unless something that it needs was never built."""
    return {
        partition: why
        for partition, why in stale.items()
        if why.causes & CAUSES[source]
        and Cause.NEVER_BUILT not in why.causes
        and (publishes or partition.asset != "publication")
    }


def partitions_of(defined: dg.RepositoryDefinition | None, asset: str) -> dg.PartitionsDefinition[str]:
    """An asset's partitions as the definitions have them, which may be older than the matrix."""
    assert defined is not None  # the daemon and the tests give one
    partitions_def = defined.assets_defs_by_key[dg.AssetKey(asset)].partitions_def
    assert partitions_def is not None  # every asset has one
    return partitions_def


def is_defined(defined: dg.RepositoryDefinition | None, partition: AssetPartition) -> bool:
    return partitions_of(defined, partition.asset).has_partition_key(partition.key)


def subset(defined: dg.RepositoryDefinition | None, partitions: Iterable[AssetPartition]) -> AssetGraphSubset:
    keys: dict[str, list[str]] = {}
    for asset, key in partitions:
        keys.setdefault(asset, []).append(key)
    return AssetGraphSubset(  # type: ignore[call-arg]
        non_partitioned_asset_keys=frozenset(),
        partitions_subsets_by_asset_key={
            dg.AssetKey(asset): partitions_of(defined, asset).subset_with_partition_keys(of_asset)
            for asset, of_asset in keys.items()
        },
    )


def reasons_text(stale: Iterable[Stale]) -> str:
    """The reasons as one tag."""
    text = "; ".join(sorted({words for why in stale for words in why.reasons}))
    return text if len(text) <= MAX_TAG else text[: MAX_TAG - 1] + "…"


new_model_revision = rebuild_sensor(
    "new_model_revision", MODEL_REVISION, "Rebuild what depends on a model whose files changed"
)
new_toolchain = rebuild_sensor(
    "new_toolchain", TOOLCHAIN, "Rebuild what an upgraded compiler or library made: TensorRT, OpenVINO, …"
)

SENSORS = [new_model_revision, new_toolchain]
