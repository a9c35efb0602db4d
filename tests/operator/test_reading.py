"""The manifest as the operator takes it: which parser, which types, how large, and how it gets out of the image."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from pipelines.image import package
from pipelines.image.package import Candidate
from pipelines.matrix.values import Matrix, Row
from serving.contract import manifest
from serving.contract.profile import Precision
from serving.errors import ManifestError
from serving.tasks.base import ONLY
from tests.operator.match_profiles import CONFIG_MAP_BYTES, EXTRACT, NotReadable, parser_of, read_manifest
from tests.support.fleet_manifest import MODEL, dump
from tests.support.published import VERSIONS
from tests.support.verdicts import verdict

# ---- which parser ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("version", "parser"),
    [
        ("2.0", "v2"),
        ("2.0.0", "v2"),
        ("1.2", "v2"),
        ("12", "v2"),
        ("3.2.1", "v2"),
        ("1.0", "v1"),
        ("3.0", "v1"),
        ("", "v1"),
    ],
)
def test_any_version_with_a_2_in_it_goes_to_the_parser_of_schema_2(version: str, parser: str) -> None:
    assert parser_of(version) == parser


def test_what_the_factory_writes_goes_to_the_parser_of_schema_2(shipped: bytes) -> None:
    assert parser_of(manifest.SCHEMA_VERSION) == "v2"
    assert shipped.startswith(b"schema_version: '2.0'\n")


@pytest.mark.parametrize("version", ["1.2", "12", "2", "2.1", "3.0", "1.0"])
def test_a_version_that_the_operator_would_read_as_something_else_is_refused_by_the_server(
    shipped: bytes, version: str
) -> None:
    other = shipped.replace(b"schema_version: '2.0'", f"schema_version: '{version}'".encode())
    with pytest.raises(ManifestError, match=r"this server reads '2\.0'"):
        manifest.load(other)


# ---- which types -----------------------------------------------------------------------------------------------------


def test_another_yaml_reader_finds_text_wherever_the_operators_structs_hold_text(shipped: bytes, plan: Matrix) -> None:
    """PyYAML by YAML 1.1's rules, where 1 is a number, no is false and 8.9 is not what was written."""
    read = read_manifest(shipped.decode())
    ours = manifest.load(shipped).profiles
    assert [(profile.id, dict(profile.tags)) for profile in read] == [(one.id, dict(one.tags)) for one in ours]
    assert [dict(profile.uris) for profile in read] == [{file.path: file.uri for file in one.files} for one in ours]
    assert len(read) == sum(row.model.name == MODEL for row in plan.rows)


@pytest.mark.parametrize("tag", ["tp", "compute_capability", "number_of_gpus"])
def test_an_unquoted_tag_is_what_the_reader_above_would_notice(shipped: bytes, tag: str) -> None:
    line = next(line for line in shipped.decode().splitlines() if line.strip().startswith(f"{tag}: '"))
    with pytest.raises(NotReadable, match=f"{tag}: .* is no text; quote it"):
        read_manifest(shipped.decode().replace(line, line.replace("'", "")))


def test_ids_are_those_that_the_operator_passes_to_download_to_cache(shipped: bytes) -> None:
    """They go into a command line and an annotation as they are."""
    ids = [profile.id for profile in read_manifest(shipped.decode())]
    assert len(set(ids)) == len(ids)
    assert all(len(one) == 64 and set(one) <= set("0123456789abcdef") for one in ids)


# ---- how large -------------------------------------------------------------------------------------------------------


def test_every_cell_of_the_matrix_at_once_fits_a_config_map(plan: Matrix) -> None:
    model = next(row.model for row in plan.rows if row.model.name == MODEL)
    rows = [
        Row(model=model, sku=sku, precision=precision, tp=tp)
        for sku in plan.skus.values()
        for precision in sku.precisions
        for tp in ((1, 2, 4, 8) if sku.kind == "gpu" else (1,))
    ]
    data = dump(rows)
    assert len(rows) > 250
    assert len(data) < CONFIG_MAP_BYTES
    assert len(read_manifest(data.decode())) == len(rows)


def test_a_manifest_that_no_config_map_holds_is_never_written(shipped: bytes) -> None:
    some = manifest.load(shipped)
    first = some.profiles[0]
    many = tuple(
        replace(
            first, name=f"row{n}", id=manifest.profile_id({"n": str(n)}), tags={**first.tags, "n": str(n)}, digest=""
        )
        for n in range(1000)
    )
    with pytest.raises(ManifestError, match=f"the limit is {CONFIG_MAP_BYTES}.*ConfigMap"):
        manifest.dump(replace(some, profiles=many))


# ---- how it gets out of the image ------------------------------------------------------------------------------------


@pytest.fixture
def rootfs(tmp_path: Path, plan: Matrix) -> Path:
    """What `enginery build` puts below / of an image, for two rows whose engines are a few bytes."""
    model = next(row.model for row in plan.rows if row.model.name == MODEL)
    sources = {name: tmp_path / name for name in package.SHARED}
    for name, path in sources.items():
        path.write_text(name)
    candidates = []
    for sku, precision in (("l40s", "fp16"), ("cpu-x86-64", "fp32")):
        engine = tmp_path / f"{sku}.engine"
        engine.write_text(sku)
        row = Row(model=model, sku=plan.skus[sku], precision=Precision(precision), tp=1)
        candidates.append(Candidate(row=row, engines={ONLY: engine}, verdict=verdict(row.name, engine)))
    package.package(model, candidates, sources, VERSIONS, tmp_path / "dist")
    return tmp_path / "dist" / "rootfs"


@contextmanager
def pod(script: str, folder: Path) -> Iterator[subprocess.Popen[bytes]]:
    """The operator's command, which sleeps for ever once it has printed."""
    running = subprocess.Popen(
        ["sh", "-c", script],
        cwd=folder,
        env={"PATH": "/usr/bin:/bin"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )
    try:
        yield running
    finally:
        os.killpg(running.pid, signal.SIGKILL)
        running.wait(10)
        running.stdout.close()  # type: ignore[union-attr]


def printed(script: str, folder: Path, num_bytes: int) -> bytes:
    """The pod's log: num_bytes of it, and what else came until the pod was ended."""
    with pod(script, folder) as running:
        assert running.stdout is not None
        first = running.stdout.read(num_bytes)
        assert running.poll() is None  # it sleeps
        os.killpg(running.pid, signal.SIGTERM)
        return first + running.stdout.read()


def inside(root: Path) -> str:
    """The operator's command with the image's root where the packaged files are."""
    return EXTRACT.replace(" /opt/nim/", f" {root}/opt/nim/").replace(" /etc/nim/", f" {root}/etc/nim/")


def test_the_pods_log_is_the_manifest_and_nothing_else(rootfs: Path) -> None:
    file = rootfs / "opt/nim" / package.MANIFEST
    assert inside(rootfs).count(str(rootfs)) == 4
    log = printed(inside(rootfs), rootfs, file.stat().st_size)
    assert log == file.read_bytes()
    assert {profile.tags["sku"] for profile in read_manifest(log.decode())} == {"l40s", "cpu-x86-64"}


def test_a_file_system_without_a_manifest_says_so_in_the_operators_words(tmp_path: Path) -> None:
    words = b"model_manifest.yaml not found\n"
    assert printed(inside(tmp_path), tmp_path, len(words)) == words


def test_the_manifest_may_be_read_by_any_user(rootfs: Path) -> None:
    """The pod runs as 1000:2000 whoever owns the files."""
    path = rootfs / "opt/nim" / package.MANIFEST
    assert path.stat().st_mode & 0o004
    assert all(file.stat().st_mode & 0o004 for file in (rootfs / "opt/nim/blobs").rglob("*") if file.is_file())
