"""A matrix that is wrong ends a build before anything is written."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipelines.build.project import Project
from pipelines.errors import MatrixError

BROKEN = sorted((Path(__file__).parents[1] / "matrix" / "broken_matrices").glob("*.yaml"))


@pytest.mark.parametrize("path", BROKEN, ids=lambda path: path.stem)
def test_a_broken_matrix_leaves_neither_store_nor_dist(path: Path, tmp_path: Path) -> None:
    with pytest.raises(MatrixError):
        Project.open(path, store=tmp_path / "store", dist=tmp_path / "dist")
    assert not list(tmp_path.iterdir())
