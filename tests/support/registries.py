"""A registry for tests of publication, Debian's docker-registry; and packaged models with images to put there."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from pipelines.image import build
from pipelines.store.store import Store
from tests.support import servers
from tests.support.images import base_tar, write_containers
from tests.support.published import packaged


@pytest.fixture(scope="module")
def registry_host(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with servers.registry(tmp_path_factory.mktemp("registry")) as host:
        yield host


@pytest.fixture(scope="module")
def containers(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder like containers/ with the runtime cpu, which needs no packages, and base.tar."""
    folder = write_containers(tmp_path_factory.mktemp("containers"), "cpu")
    base_tar(folder / "base.tar")
    return folder


def imaged(folder: Path, containers: Path, content: Mapping[str, bytes] | None = None, release: str = "1.0.0") -> Path:
    """A packaged model with a full and a slim image."""
    model = packaged(folder, content, release=release)
    build.build_images(
        model,
        ("cpu",),
        store=Store(folder / "store"),
        base=containers / "base.tar",
        containers=containers,
        docker=False,
        kinds=("full", "slim"),
    )
    return model
