"""Servers as processes: one that does not start shows why."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.servers import processes
from pipelines.errors import EngineryError


def test_a_server_that_does_not_start_shows_the_end_of_its_log(tmp_path: Path) -> None:
    command = ["sh", "-c", "echo the reason; exit 3"]
    with (
        pytest.raises(EngineryError, match=r"ended with 3:\nthe reason"),
        processes.started(command, 1, "/", tmp_path / "log", {}),
    ):
        pass


def test_a_folder_without_a_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(EngineryError, match="run enginery build first"):
        processes.serving_environment(tmp_path, 1)
