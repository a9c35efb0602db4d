"""The Dagster code location: the assets of the matrix named by ENGINERY_MATRIX. `enginery ui` loads it.

Importing it reads nothing: Dagster's processes call `defs` when they want the definitions.
https://docs.dagster.io/api/dagster/definitions
"""

import os

import dagster as dg

from pipelines.dagster.assets import factory_assets
from pipelines.dagster.partitions import Partitions
from pipelines.dagster.resources import Factory
from pipelines.dagster.schedules import JOBS, SCHEDULES
from pipelines.dagster.sensors import SENSORS
from pipelines.dagster.source_assets import source_assets


def build_defs(factory: Factory) -> dg.Definitions:
    """Everything of one matrix. A stage is a process of its own, so that a run needs no other executor."""
    current = factory.plan()
    partitions = Partitions(current.plan.graph, current.lineages)
    return dg.Definitions(
        assets=[*source_assets(partitions.of), *factory_assets(partitions)],
        resources={"factory": factory},
        sensors=SENSORS,
        schedules=SCHEDULES,
        jobs=JOBS,
        executor=dg.in_process_executor,
    )


@dg.definitions
def defs() -> dg.Definitions:
    return build_defs(Factory.from_environment(os.environ))
