"""Get the base image of a runtime: a tar, an image that Docker has or pulls, or one made from packages."""

from __future__ import annotations

import re
import subprocess
import tarfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from pipelines.errors import ImageError
from pipelines.image import dockerfile, oci
from pipelines.image.docker import DockerClient
from pipelines.store.files import file_digest, key_of
from pipelines.store.store import Blob, Record, Store

_PYTHON = re.compile(r"usr/(?:local/)?bin/python(3\.\d+)")


@dataclass(frozen=True, kw_only=True)
class Base:
    """A base image as canonical layers."""

    name: str  # "python:3.11-slim-bookworm", "Debian packages"
    layers: tuple[oci.Layer, ...]
    settings: Mapping[str, Any]  # its config: Env and the like; empty for a tar
    python: str  # "3.11": the wheels must be built for it


def pinned(lock: Path) -> str:
    """The image that images.lock names, by digest if it has one."""
    base = yaml.safe_load(lock.read_text())["base"]
    return f"{base['image']}@{base['digest']}" if base["digest"] else f"{base['image']}:{base['tag']}"


def get(wanted: str | Path | None, containers: Path, store: Store, docker: DockerClient | None) -> Base:
    """Get the base. `wanted` is a tar file's path or an image reference.

    None takes the first of: the pinned image if Docker has it, a base that base.sh made here before, the pinned
    image pulled, a new run of base.sh. Raises ImageError with every reason.
    """
    if wanted is not None:
        return _tar(Path(wanted), store) if Path(wanted).is_file() else _image(str(wanted), store, docker)
    reference = pinned(containers / "images.lock")
    if docker is not None and docker.id_of(reference):
        return _image(reference, store, docker)
    script = containers / "base.sh"
    key = key_of({"format": oci.FORMAT, "script": file_digest(script)})
    if (made := store.record(key)) is not None:
        return _from_record(made)
    reasons = []
    try:
        return _image(reference, store, docker)
    except ImageError as error:
        reasons.append(str(error))
    try:
        return _packages(script, key, store)
    except ImageError as error:
        reasons.append(str(error))
    raise ImageError(
        "no base image can be had:\n"
        + "\n".join(f"  {reason}" for reason in reasons)
        + "\n  give one with --base: an image that can be pulled, or a tar made by containers/base.sh elsewhere"
    )


def _tar(path: Path, store: Store) -> Base:
    key = key_of({"format": oci.FORMAT, "tar": file_digest(path)})
    if (record := store.record(key)) is None:
        with store.workspace() as scratch:
            record = _record(key, path.name, [_rewritten(path, scratch / "layer", store)], {}, store)
    return _from_record(record)


def _packages(script: Path, key: str, store: Store) -> Base:
    with store.workspace() as scratch:
        done = subprocess.run([script, scratch / "base.tar"], capture_output=True, text=True, check=False)
        if done.returncode:
            said = done.stderr.strip().splitlines()[-8:] or [f"exit code {done.returncode}"]
            raise ImageError("a base could not be made from Debian packages: " + "\n    ".join(said))
        layer = _rewritten(scratch / "base.tar", scratch / "layer", store)
        return _from_record(_record(key, "Debian packages", [layer], {}, store))


def _image(reference: str, store: Store, docker: DockerClient | None) -> Base:
    if docker is None:
        raise ImageError(f"{reference} is neither a file nor can it be pulled: no Docker engine can be reached")
    if (image_id := docker.id_of(reference)) is None:
        docker.pull(reference)
        image_id = docker.id_of(reference)
    key = key_of({"format": oci.FORMAT, "image": image_id})
    if (record := store.record(key)) is None:
        settings = docker.settings_of(reference)
        settings = {k: v for k, v in settings.items() if k in dockerfile.KEPT and v}
        with store.workspace() as scratch:
            blobs = []
            for stream in docker.save_layers(reference, scratch / "saved"):
                oci.rewrite_layer(stream, scratch / "layer")
                blobs.append(store.put(scratch / "layer"))
            record = _record(key, reference, blobs, settings, store)
    return _from_record(record)


def _rewritten(source: Path, scratch: Path, store: Store) -> Blob:
    try:
        with source.open("rb") as file:
            oci.rewrite_layer(file, scratch)
    except (tarfile.TarError, ValueError) as error:
        raise ImageError(f"{source} is no tar of a root file system: {error}") from error
    return store.put(scratch)


def _record(key: str, name: str, blobs: list[Blob], settings: Mapping[str, Any], store: Store) -> Record:
    """Remember a base. Its Python's version is read off the file names: nothing of it is run."""
    found = {m[1] for blob in blobs for n in _names(store.path(blob.digest)) if (m := _PYTHON.fullmatch(n))}
    if len(found) != 1:
        what = f"several Pythons ({', '.join(sorted(found))})" if found else "no Python"
        raise ImageError(f"the base {name} has {what} in /usr/bin and /usr/local/bin; it must have exactly one")
    record = Record(
        key=key,
        stage="base",
        subject=name.replace("/", "_"),
        key_inputs={},
        outputs={f"{number:03}": blob for number, blob in enumerate(blobs)},
        facts={"name": name, "settings": dict(settings), "python": found.pop()},
        duration_s=0.0,
        peak_rss_bytes=0,
    )
    store.write_record(record)
    return record


def _from_record(record: Record) -> Base:
    name = str(record.facts["name"])
    return Base(
        name=name,
        layers=tuple(oci.Layer(what="base", blob=blob) for _, blob in sorted(record.outputs.items())),
        settings=record.facts["settings"],
        python=record.facts["python"],
    )


def _names(layer: Path) -> list[str]:
    with tarfile.open(layer) as archive:
        return archive.getnames()
