"""Read a release as those who pull it do, and hash every byte: in a bucket, in a registry, or in dist/MODEL.

The nightly verification and `enginery inspect --verify` are this one check.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from blake3 import blake3

from pipelines.errors import PublishError
from pipelines.image import build, oci, package
from pipelines.inspect import resolve
from pipelines.inspect.resolve import ResolvedRelease
from pipelines.release import document as releases
from pipelines.remote import Log
from pipelines.remote.address import parse
from pipelines.remote.registry import Registry
from pipelines.store.files import file_digest
from serving.cache.places import locate
from serving.cache.sources import Sources
from serving.cache.sources.base import SourceError, Transient, opened
from serving.contract.profile import ProfileFile

CHUNK_BYTES = 1 << 20
FILES_AT_ONCE = 4
ATTEMPTS = 3


@dataclass(frozen=True, kw_only=True)
class Verified:
    """What was read, and everything that is wrong with it."""

    resolved: ResolvedRelease
    num_files: int
    size_bytes: int
    num_images: int
    problems: tuple[str, ...]


def verify(reference: str, *, log: Log = lambda _: None) -> Verified:
    """Verify every file and image of a release. Raises PublishError where there is none to verify."""
    resolved = resolve.read(reference)
    folder = Path(reference) if resolved.folder else None
    repository = resolved.repository if folder is None else (folder / package.ROOT).absolute().as_uri()
    if repository is None:
        raise PublishError(f"{reference}: only a release in a bucket or under a registry's tag can be verified")

    def problem(file: ProfileFile) -> str | None:
        log(f"reading {file.uri} ({file.size_bytes / 1e6:.1f} MB)")
        for _ in range(ATTEMPTS - 1):
            with suppress(Transient):  # a line that breaks says nothing of what is published
                return _asked(file, repository)
        try:
            return _asked(file, repository)
        except Transient as error:
            return str(error)

    files = resolved.release.files
    with ThreadPoolExecutor(FILES_AT_ONCE) as pool:
        problems = [f"{uri}: {why}" for uri, why in zip(files, pool.map(problem, files.values()), strict=True) if why]
    images = resolved.release.document.images if folder or repository.startswith("oci") else ()
    if folder is not None:
        problems += _beside(folder)
        look: Callable[[str], str | None] = partial(_layout_problem, folder / build.LAYOUT, set())
    elif images:
        registry = Registry(parse(repository), token=os.environ.get("ENGINERY_REPOSITORY_TOKEN"))
        look = partial(_image_problem, registry)
    problems += [
        f"image {facts.runtime} ({facts.kind}) {facts.digest}: {why}"
        for facts in images
        if (why := look(facts.digest)) is not None
    ]
    return Verified(
        resolved=resolved,
        num_files=len(files),
        size_bytes=sum(file.size_bytes for file in files.values()),
        num_images=len(images),
        problems=tuple(problems),
    )


def verify_all(references: Iterable[str], *, log: Log = lambda _: None) -> dict[str, Verified | str]:
    """Verify each, and go on where one cannot be read at all: that is then its reason."""
    results: dict[str, Verified | str] = {}
    for reference in references:
        try:
            results[reference] = verify(reference, log=log)
        except PublishError as error:
            results[reference] = str(error)
    return results


def _asked(file: ProfileFile, repository: str) -> str | None:
    try:
        return _problem(file, repository)
    except Transient:
        raise
    except SourceError as error:
        return str(error)


def _problem(file: ProfileFile, repository: str) -> str | None:
    """Why a file's bytes are not the manifest's. A source of its own for each: they are not shared between threads."""
    location, hasher, size = locate(file, repository), blake3(max_threads=1), 0
    sources = Sources(token=os.environ.get("ENGINERY_REPOSITORY_TOKEN"))
    with opened(sources.of(location), location, 0, "") as stream:
        while chunk := stream.read(CHUNK_BYTES):
            hasher.update(chunk)
            size += len(chunk)
    if size != file.size_bytes:
        return f"has {size} bytes where the manifest says {file.size_bytes}"
    actual = f"blake3:{hasher.hexdigest()}"
    return None if actual == file.checksum else f"hashes to {actual} where the manifest says {file.checksum}"


def _beside(folder: Path) -> list[str]:
    """Whether the manifest that a person reads is the one that servers get."""
    shown, served = folder / releases.MANIFEST, folder / package.ROOT / package.MANIFEST
    if shown.is_file() and shown.read_bytes() == served.read_bytes():
        return []
    return [f"{shown}: is not {served}; build the model again"]


def _layout_problem(layout: Path, whole: set[str], digest: str) -> str | None:
    """Why an image of an OCI layout is not whole. Each blob is read once: `whole` are those that were found so."""

    def read(one: str) -> Path:
        path = layout / oci.blob_path(one)
        if one not in whole and (actual := file_digest(path)) != one:
            raise ValueError(f"{path} hashes to {actual}")
        whole.add(one)
        return path

    try:
        described = json.loads(read(digest).read_bytes())
        for part in (described["config"], *described["layers"]):
            read(part["digest"])
    except (OSError, ValueError) as error:
        return f"{error}; build the images again"
    return None


def _image_problem(registry: Registry, digest: str) -> str | None:
    try:
        missing = registry.missing_blobs(digest)
    except PublishError as error:
        return str(error)
    if missing is None:
        return "is not there"
    return f"lacks {', '.join(missing)}" if missing else None
