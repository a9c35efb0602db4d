"""Read what is published as those who pull it do, and hash every byte: the nightly check of a bucket or a registry."""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass

from blake3 import blake3

from pipelines import publish_registry, release_read
from pipelines.errors import PublishError
from pipelines.publish_registry import Registry
from pipelines.release_read import Found
from serving.cache import locate
from serving.cache.sources import SourceError, Sources, Transient, opened
from serving.profile import ProfileFile

CHUNK_BYTES = 1 << 20
FILES_AT_ONCE = 4
ATTEMPTS = 3
Say = Callable[[str], None]


@dataclass(frozen=True, kw_only=True)
class Verified:
    """What was read, and everything that is wrong with it."""

    found: Found
    num_files: int
    size_bytes: int
    num_images: int
    problems: tuple[str, ...]


def verify(reference: str, *, say: Say = lambda _: None) -> Verified:
    """Verify every file and image of a published release. Raises PublishError where there is none to verify."""
    found = release_read.read(reference)
    repository = found.repository
    if repository is None:
        raise PublishError(f"{reference}: only a release in a bucket or under a registry's tag can be verified")

    def problem(file: ProfileFile) -> str | None:
        say(f"reading {file.uri} ({file.size_bytes / 1e6:.1f} MB)")
        for _ in range(ATTEMPTS - 1):
            with suppress(Transient):  # a line that breaks says nothing of what is published
                return _asked(file, repository)
        try:
            return _asked(file, repository)
        except Transient as error:
            return str(error)

    files = found.release.files
    with ThreadPoolExecutor(FILES_AT_ONCE) as pool:
        problems = [f"{uri}: {why}" for uri, why in zip(files, pool.map(problem, files.values()), strict=True) if why]
    images = found.release.document.images if repository.startswith("oci") else ()
    if images:
        registry = Registry(publish_registry.parse(repository), token=os.environ.get("ENGINERY_REPOSITORY_TOKEN"))
        problems += [
            f"image {image.runtime} ({image.kind}) {image.digest}: {why}"
            for image in images
            if (why := _image_problem(registry, image.digest)) is not None
        ]
    return Verified(
        found=found,
        num_files=len(files),
        size_bytes=sum(file.size_bytes for file in files.values()),
        num_images=len(images),
        problems=tuple(problems),
    )


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


def _image_problem(registry: Registry, digest: str) -> str | None:
    try:
        missing = registry.missing_blobs(digest)
    except PublishError as error:
        return str(error)
    if missing is None:
        return "is not there"
    return f"lacks {', '.join(missing)}" if missing else None
