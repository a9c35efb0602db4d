"""Images for tests: a package of a few bytes, a base that only looks like one, and the real runtimes in the engine."""

from __future__ import annotations

import fcntl
import io
import os
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from pipelines.image import build as image
from pipelines.image import docker, package, runtime
from pipelines.image.images import ImageResult
from pipelines.image.package import Candidate
from pipelines.matrix.load import load
from pipelines.matrix.values import Row
from pipelines.store.store import Store
from serving.contract.profile import Precision
from serving.tasks.base import ONLY
from tests.support.published import MATRIX, VERSIONS
from tests.support.verdicts import verdict

MODEL = f"test-images-{os.getpid()}"  # never the name of an image that a person has

PYTHON = f"python3.{sys.version_info.minor}"

CPU_ROWS = (("cpu-x86-64", "fp32"), ("cpu-avx512-bf16", "bf16"))

GPU_ROWS = (("l40s", "fp16"), ("l4", "fp16"), ("l40s", "fp8"))

HARDENED = (
    *("--network=none", "--read-only", "--tmpfs=/tmp", "--cap-drop=ALL", "--security-opt=no-new-privileges"),
    *("--pids-limit=256", "--user=12345:2000"),
    "--no-healthcheck",  # an engine runs it inside the container as `docker exec` does, which some hosts cannot
)


def dist(folder: Path, rows: tuple[tuple[str, str], ...] = CPU_ROWS + GPU_ROWS, changed: str = "") -> Path:
    """A packaged model whose engines are a few bytes: nothing here loads them."""
    matrix = load(MATRIX)
    model = replace(next(iter(matrix.models.values())), name=MODEL)
    sources = folder / "sources"
    sources.mkdir(parents=True)
    for name in package.SHARED:
        (sources / name).write_text(name)
    candidates = []
    for sku, precision in rows:
        row = Row(model=model, sku=matrix.skus[sku], precision=Precision(precision), tp=1)
        target = row.sku.compute_capability or row.sku.name
        engine = sources / f"{target}-{precision}"
        engine.write_text(f"{target} {precision}" + (" changed" if changed == sku else ""))
        candidates.append(Candidate(row=row, engines={ONLY: engine}, verdict=verdict(row.name, engine)))
    package.package(model, candidates, {n: sources / n for n in package.SHARED}, VERSIONS, folder / "dist")
    return folder / "dist"


def write_containers(folder: Path, *runtimes: str) -> Path:
    """A folder like containers/, with runtimes that need no packages."""
    for name in runtimes:
        (folder / name).mkdir(parents=True)
        (folder / name / "Dockerfile").write_text(
            'ARG BASE\nFROM ${BASE}\nCOPY app/ /opt/enginery/\nENV A=1\nUSER 1000:1000\nENTRYPOINT ["/bin/x"]\n'
        )
    shutil.copytree(runtime.CONTAINERS / "bin", folder / "bin", symlinks=True)
    shutil.copy(runtime.CONTAINERS / "images.lock", folder)
    return folder


def base_tar(path: Path, python: str = PYTHON, **changed: bytes) -> Path:
    files = {f"usr/bin/{python}": b"#!", "etc/os-release": b"debian", **changed}
    with tarfile.open(path, "w") as archive:
        for name, data in files.items():
            member = tarfile.TarInfo(name)
            member.size, member.mode = len(data), 0o755
            archive.addfile(member, io.BytesIO(data))
    return path


@contextmanager
def imported(layer: Path, reference: str) -> Iterator[str]:
    """A Docker image of one layer, for a Dockerfile to start from."""
    subprocess.run(["docker", "import", layer, reference], check=True, capture_output=True, timeout=300)
    try:
        yield reference
    finally:
        subprocess.run(["docker", "rmi", reference], check=False, capture_output=True, timeout=60)


def files_of(result: ImageResult, store: Path) -> dict[str, bytes]:
    """The image's files, upper layers over lower ones; the layers lie in the store it was built with."""
    found: dict[str, bytes] = {}
    for layer in result.layers:
        with tarfile.open(Store(store).path(layer.digest)) as archive:
            for member in archive:
                if member.isreg():
                    found[member.name] = archive.extractfile(member).read()  # type: ignore[union-attr]
    return found


@pytest.fixture(scope="module")
def image_store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A store with the real base and wheels. ENGINERY_CACHE keeps it between runs: a base takes a minute to make."""
    folder = Path(os.environ.get("ENGINERY_CACHE") or tmp_path_factory.mktemp("cache"))
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "tests.lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield folder


@pytest.fixture(scope="module")
def docker_client() -> docker.DockerClient:
    try:
        return docker.connect(timeout_s=300)
    except docker.DockerUnreachable as error:
        pytest.skip(str(error))


@pytest.fixture(scope="module")
def image_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The packaged model of the fixture `images`."""
    return dist(tmp_path_factory.mktemp("images"))


@pytest.fixture(scope="module")
def images(
    image_store: Path, docker_client: docker.DockerClient, image_folder: Path
) -> Iterator[dict[str, ImageResult]]:
    """Real runtimes under a model of a few bytes, in Docker."""
    made = image.build_images(image_folder, ("rtx", "cpu"), store=Store(image_store))
    yield {result.runtime: result for result in made}
    for result in made:
        docker_client.remove(result.reference)
