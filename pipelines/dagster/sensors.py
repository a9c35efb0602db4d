"""What starts builds without a hand: a new model revision, a new toolchain. `lineage` decides what is due.

Each sensor records the versions it sees (so that the UI says what is stale and why) and launches one backfill of
exactly the partitions that are due for its cause. Its cursor remembers, for each partition, the version of what it
watches at which the partition was up to date or was launched: what that backfill has not built yet, or could not build,
is not launched again; a failed build waits for a person or for another version.
"""

import json
from collections.abc import Mapping, Set

import dagster as dg
from dagster._core.definitions.assets.graph.asset_graph_subset import AssetGraphSubset

from pipelines.dagster.lineage import Cell, Due, due, lineage, watched
from pipelines.dagster.resources import Factory
from pipelines.dagster.source_assets import observe
from pipelines.errors import EngineryError
from pipelines.plan.staleness import Cause

BUILT = dg.AssetSelection.assets("fp32_onnx", "typed_onnx", "engine", "verdict", "manifest", "image", "publication")
WHY = "enginery/why"
CAUSE = "enginery/cause"
MAX_TAG = 255  # characters, of what a person reads in the list of runs
INTERVAL_S = 30


def rebuild_sensor(name: str, cause: Cause, description: str) -> dg.SensorDefinition:
    @dg.sensor(
        name=name,
        description=description,
        asset_selection=BUILT,
        minimum_interval_seconds=INTERVAL_S,
        default_status=dg.DefaultSensorStatus.RUNNING,
    )
    def evaluate(context: dg.SensorEvaluationContext, factory: Factory) -> dg.RunRequest | dg.SkipReason:
        try:
            project = factory.project()
            graph = project.graph()
            changed = observe(context.instance, graph)
            cells = lineage(graph)
            stale = due(graph, project.store, cells, factory.unpublished(graph))
        except EngineryError as error:
            return dg.SkipReason(str(error))
        for (asset, partition), (was, now) in changed.items():
            context.log.info("%s of %s: %s -> %s", asset, partition, was, now)
        found = launched(stale, cause, publishes=factory.destination is not None)
        now_at, known_at = watched(graph, cells, cause), remembered(context.cursor)
        wanted = {cell: why for cell, why in found.items() if known_at.get(spelled(cell)) != now_at[cell]}
        # Of what is stale for another reason, only what was never seen: its own cause may come to light later.
        settled = {
            cell
            for cell in cells
            if cell not in stale or (cause not in stale[cell].causes and spelled(cell) not in known_at)
        }
        if not wanted:
            context.update_cursor(remember(known_at, now_at, settled))
            if found:
                return dg.SkipReason("what is due was launched already; materialize it by hand to try again")
            return dg.SkipReason(f"{len(stale)} partitions are stale, none of them for a new {cause}")
        defined = context.repository_def
        assert defined is not None
        known = {
            asset: defined.asset_graph.get(dg.AssetKey(asset)).partitions_def
            for asset in {asset for asset, _ in wanted}
        }
        missing = sorted(
            spelled(cell) for cell in wanted if cell[1] not in (known[cell[0]] or _none()).get_partition_keys()
        )
        if missing:
            return dg.SkipReason(f"{', '.join(missing)}: new in the matrix; reload the definitions")
        context.update_cursor(remember(known_at, now_at, settled | wanted.keys()))
        return dg.RunRequest.for_asset_graph_subset(
            AssetGraphSubset(  # type: ignore[call-arg]
                non_partitioned_asset_keys=frozenset(),
                partitions_subsets_by_asset_key={
                    dg.AssetKey(asset): definition.subset_with_partition_keys(
                        [key for found, key in wanted if found == asset]
                    )
                    for asset, definition in known.items()
                    if definition is not None
                },
            ),
            tags={CAUSE: str(cause), WHY: told(wanted)},
        )

    return evaluate


def spelled(cell: Cell) -> str:
    return ":".join(cell)


def remembered(cursor: str | None) -> dict[str, str]:
    """What a cursor says: the version of each partition. Nothing if there is none, or one of an earlier form."""
    try:
        said = json.loads(cursor or "{}")
    except ValueError:
        return {}
    return {str(cell): str(version) for cell, version in said.items()} if isinstance(said, dict) else {}


def remember(known_at: Mapping[str, str], now_at: Mapping[Cell, str], settled: Set[Cell]) -> str:
    """The next cursor: today's version of what is settled, and what was known of the rest."""
    kept = {spelled(cell): known_at[spelled(cell)] for cell in now_at if spelled(cell) in known_at}
    return json.dumps(kept | {spelled(cell): now_at[cell] for cell in now_at if cell in settled})


def _none() -> dg.StaticPartitionsDefinition:
    return dg.StaticPartitionsDefinition([])


def launched(stale: Mapping[Cell, Due], cause: Cause, *, publishes: bool) -> dict[Cell, Due]:
    """What a sensor of this cause launches: all that is due for it, unless something it needs was never built."""
    return {
        cell: found
        for cell, found in stale.items()
        if cause in found.causes and Cause.NEVER_BUILT not in found.causes and (publishes or cell[0] != "publication")
    }


def told(wanted: Mapping[Cell, Due]) -> str:
    """The reasons as one tag."""
    text = "; ".join(sorted({line for found in wanted.values() for line in found.why}))
    return text if len(text) <= MAX_TAG else text[: MAX_TAG - 1] + "…"


new_model_revision = rebuild_sensor(
    "new_model_revision", Cause.MODEL, "Rebuild what depends on a model whose files changed"
)
new_toolchain = rebuild_sensor(
    "new_toolchain", Cause.TOOLCHAIN, "Rebuild what an upgraded compiler or library made: TensorRT, OpenVINO, …"
)

SENSORS = [new_model_revision, new_toolchain]
