"""The manifest that the repository's own matrix would give, were every row built and passed."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import pytest

from pipelines.image.package import EXECUTION, SHARED, tags_of
from pipelines.matrix import load
from serving.contract import manifest
from serving.contract.manifest import Manifest
from serving.contract.profile import Profile, ProfileFile
from tests.operator.match_profiles import OperatorProfile, read_manifest

MATRIX = Path(__file__).parents[2] / "sku_matrix.yaml"
MODEL = "all-minilm-l6-v2"
ENGINE_BYTES = 50_000_000
VERSIONS = {"tensorrt-rtx": "1.7.1.116", "tensorrt": "11.4.0", "openvino": "2026.4.1", "onnxruntime": "1.31.1"}


def profile_of(row: load.Row) -> Profile:
    tags = tags_of(row, VERSIONS, ENGINE_BYTES)
    names = (f"engine{EXECUTION[row.sku.compiler][2]}", *SHARED)
    files = []
    for name in names:
        digest = manifest.profile_id({"row": row.name if name.startswith("engine") else MODEL, "file": name})
        files.append(
            ProfileFile(path=name, uri=f"blobs/blake3/{digest}", checksum=f"blake3:{digest}", size_bytes=ENGINE_BYTES)
        )
    return Profile(id=manifest.profile_id(tags), name=row.name, tags=tags, files=tuple(files), proof_min_cosine=0.99)


def dumped(rows: Iterable[load.Row]) -> bytes:
    return manifest.dump(Manifest(model=MODEL, release="0.1.0", profiles=tuple(profile_of(row) for row in rows)))


@pytest.fixture(scope="session")
def plan() -> load.Matrix:
    return load.load(MATRIX)


@pytest.fixture(scope="session")
def shipped(plan: load.Matrix) -> bytes:
    return dumped(row for row in plan.rows if row.model.name == MODEL)


@pytest.fixture(scope="session")
def offered(shipped: bytes) -> tuple[OperatorProfile, ...]:
    """As the operator reads it."""
    return read_manifest(shipped.decode())
