"""A fleet that Dagster really built, and the instance that knows it."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import dagster as dg
import pytest

from pipelines.dagster.source_assets import observe
from tests.support.fleets import NOT_BUILT, Fleet


@pytest.fixture(scope="session")
def pristine(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> Path:
    """A fleet that Dagster really built, but for image and publication (NOT_BUILT); its instance lies beside it."""
    folder = tmp_path_factory.mktemp("pristine")
    fleet = Fleet.at(folder, tiny_model)
    (folder / "dagster").mkdir()
    with dg.DagsterInstance.local_temp(str(folder / "dagster")) as instance:
        observe(instance, fleet.factory.plan().lineages)
        fleet.materialize(instance, *(partition for partition in fleet.partitions() if partition not in NOT_BUILT))
    return folder


@pytest.fixture
def fleet(pristine: Path, tmp_path: Path) -> Fleet:
    shutil.copytree(pristine, tmp_path / "fleet")
    return Fleet(folder=tmp_path / "fleet")


@pytest.fixture
def instance(fleet: Fleet) -> Iterator[dg.DagsterInstance]:
    with dg.DagsterInstance.local_temp(str(fleet.folder / "dagster")) as opened:
        yield opened
