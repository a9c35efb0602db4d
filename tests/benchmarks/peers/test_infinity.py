"""Infinity's environment: one that is missing is told with its remedy."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.peers import infinity
from pipelines.errors import EngineryError


def test_the_peers_environment_that_is_missing_is_named_with_its_remedy(tmp_path: Path) -> None:
    with pytest.raises(EngineryError, match="make bench makes it"):
        infinity.versions(tmp_path / "python")
