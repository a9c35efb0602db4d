"""The manifest that the repository's own matrix would give, were every row built and passed."""

from __future__ import annotations

import pytest

from pipelines.matrix import load
from tests.operator.match_profiles import OperatorProfile, read_manifest
from tests.support.fleet_manifest import MODEL, dump
from tests.support.published import MATRIX


@pytest.fixture(scope="session")
def plan() -> load.Matrix:
    return load.load(MATRIX)


@pytest.fixture(scope="session")
def shipped(plan: load.Matrix) -> bytes:
    return dump(row for row in plan.rows if row.model.name == MODEL)


@pytest.fixture(scope="session")
def offered(shipped: bytes) -> tuple[OperatorProfile, ...]:
    """As the operator reads it."""
    return read_manifest(shipped.decode())
