"""The Dagster code location: the assets of the matrix named by ENGINERY_MATRIX. `enginery ui` loads it."""

import os
from pathlib import Path

import dagster as dg

from pipelines.assets import factory_assets
from pipelines.build import Workshop
from pipelines.resources import Factory

MATRIX = os.environ.get("ENGINERY_MATRIX", "sku_matrix.yaml")
STORE = os.environ.get("ENGINERY_STORE", ".store")
DIST = os.environ.get("ENGINERY_DIST", "dist")

defs = dg.Definitions(
    assets=factory_assets(Workshop.open(Path(MATRIX), store=Path(STORE)).graph()),
    resources={"factory": Factory(matrix=MATRIX, store=STORE, dist=DIST)},
)
