"""The Dagster code location: the assets of the matrix named by ENGINERY_MATRIX. `enginery ui` loads it."""

import os

import dagster as dg

from pipelines.dagster.assets import Partitions, factory_assets
from pipelines.dagster.resources import Factory
from pipelines.dagster.schedules import JOBS, SCHEDULES
from pipelines.dagster.sensors import SENSORS
from pipelines.dagster.source_assets import source_assets


def definitions(factory: Factory) -> dg.Definitions:
    """Everything of one matrix. Stages are processes already, so that a run needs no more of its own."""
    graph = factory.graph()
    return dg.Definitions(
        assets=[*source_assets(Partitions(graph).of), *factory_assets(graph)],
        resources={"factory": factory},
        sensors=SENSORS,
        schedules=SCHEDULES,
        jobs=JOBS,
        executor=dg.in_process_executor,
    )


defs = definitions(
    Factory(
        matrix=os.environ.get("ENGINERY_MATRIX", "sku_matrix.yaml"),
        store=os.environ.get("ENGINERY_STORE", ".store"),
        dist=os.environ.get("ENGINERY_DIST", "dist"),
        base=os.environ.get("ENGINERY_BASE") or None,
        publish_to=os.environ.get("ENGINERY_PUBLISH_TO") or None,
        publish_unguarded=os.environ.get("ENGINERY_PUBLISH_UNGUARDED") == "1",
        publish_replace=os.environ.get("ENGINERY_PUBLISH_REPLACE") == "1",
    )
)
