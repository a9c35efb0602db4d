"""A packaged model's files as an OCI artifact: what a slim image downloads from a registry (serving.cache.sources.oci).

The layout can be pushed by any tool: skopeo copy oci:dist/MODEL/artifact:RELEASE docker://HOST/REPOSITORY:RELEASE, or
oras cp --from-oci-layout dist/MODEL/artifact:RELEASE HOST/REPOSITORY:RELEASE.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipelines.errors import PublishError
from pipelines.image import oci, package
from pipelines.release import document as release
from pipelines.release.document import Published
from pipelines.store.files import canonical, file_digest, write_atomically
from pipelines.store.store import Blob

LAYOUT = "artifact"  # the folder in dist/<model>
TYPE = "application/vnd.enginery.model.v1"
FILE_TYPE = "application/octet-stream"
TITLE = "org.opencontainers.image.title"
EMPTY = b"{}"  # the config of an artifact that has none (image-spec, "Guidelines for Artifact Usage")
EMPTY_TYPE = "application/vnd.oci.empty.v1+json"


@dataclass(frozen=True, kw_only=True)
class Artifact:
    """An artifact, and the layout that holds it."""

    folder: Path
    manifest_digest: str  # what a registry names it by
    num_files: int
    size_bytes: int


@dataclass(frozen=True, kw_only=True)
class Contents:
    """What an artifact is made of."""

    release: Published
    manifest: bytes
    layers: tuple[tuple[str, Blob, Path | bytes], ...]  # title, what it is, where it is


def contents(folder: Path) -> Contents:
    """The artifact of dist/MODEL: every file of its profiles, model_manifest.yaml and release.json, by title.

    Raises PublishError if a file is missing or damaged.
    """
    root, new = folder / package.ROOT, release.of_folder(folder)
    layers: list[tuple[str, Blob, Path | bytes]] = []
    for uri, file in sorted(new.files.items()):
        path = root / uri
        if not package.holds(path, file.checksum.removeprefix("blake3:")):
            raise PublishError(f"{path} is missing or damaged; remove it and run the build again")
        layers.append((uri, Blob(digest=file_digest(path), size_bytes=path.stat().st_size), path))
    layers += documents(new)
    content = canonical(
        {
            "schemaVersion": 2,
            "mediaType": oci.MANIFEST_TYPE,
            "artifactType": TYPE,
            "config": oci.descriptor(EMPTY_TYPE, oci.blob_of(EMPTY)),
            "layers": described(layers),
            "annotations": {TITLE: new.document.model, "org.opencontainers.image.version": new.document.release},
        }
    )
    return Contents(release=new, manifest=content, layers=tuple(layers))


def documents(new: Published) -> list[tuple[str, Blob, Path | bytes]]:
    """What tells of a release without its blobs."""
    files = {release.MANIFEST: new.manifest_bytes, release.DOCUMENT: new.dump()}
    return [(title, oci.blob_of(data), data) for title, data in files.items()]


def described(layers: Iterable[tuple[str, Blob, Path | bytes]]) -> list[dict[str, Any]]:
    return [{**oci.descriptor(FILE_TYPE, blob), "annotations": {TITLE: title}} for title, blob, _ in layers]


def write(folder: Path) -> Artifact:
    """Write the artifact of a packaged model (dist/<model>) as an OCI layout; its blobs are links to the package's.

    Raises PublishError if a file is missing or damaged.
    """
    artifact = contents(folder)
    layout = folder / LAYOUT
    sources = {oci.blob_path(blob.digest): source for _, blob, source in artifact.layers}
    sources |= {oci.blob_path(oci.blob_of(data).digest): data for data in (EMPTY, artifact.manifest)}
    for name, source in sources.items():
        if isinstance(source, bytes):
            write_atomically(layout / name, source)
        else:
            oci.link(source, layout / name)
    oci.write_index(layout, {artifact.release.document.release: artifact.manifest})
    for path in (layout / "blobs" / "sha256").iterdir():
        if f"blobs/sha256/{path.name}" not in sources:
            path.unlink()
    return Artifact(
        folder=layout,
        manifest_digest=oci.blob_of(artifact.manifest).digest,
        num_files=len(artifact.layers),
        size_bytes=sum(blob.size_bytes for _, blob, _ in artifact.layers),
    )
