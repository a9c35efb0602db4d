"""A packaged model's files as an OCI artifact: what a slim image downloads from a registry (serving.cache.sources.oci).

The layout can be pushed by any tool: skopeo copy oci:dist/MODEL/artifact:RELEASE docker://HOST/REPOSITORY:RELEASE, or
oras cp --from-oci-layout dist/MODEL/artifact:RELEASE HOST/REPOSITORY:RELEASE.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from pipelines import oci, package
from pipelines.errors import ImageError
from pipelines.store import Blob, canonical, file_digest, write_atomically
from serving import manifest

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


def write(folder: Path) -> Artifact:
    """Write the artifact of a packaged model (dist/<model>) as an OCI layout; its blobs are links to the package's.

    Raises ImageError if a file is missing or damaged.
    """
    root = folder / package.ROOT
    shipped = manifest.read(root / package.MANIFEST)
    files = {file.uri: file for profile in shipped.profiles for file in profile.files if "://" not in file.uri}
    layers: list[tuple[str, Blob]] = []
    for uri, file in sorted(files.items()):
        path = root / uri
        if not package.holds(path, file.checksum.removeprefix("blake3:")):
            raise ImageError(f"{path} is missing or damaged; remove it and run the build again")
        layers.append((uri, Blob(digest=file_digest(path), size_bytes=path.stat().st_size)))
    content = canonical(
        {
            "schemaVersion": 2,
            "mediaType": oci.MANIFEST_TYPE,
            "artifactType": TYPE,
            "config": oci.descriptor(EMPTY_TYPE, oci.blob_of(EMPTY)),
            "layers": [{**oci.descriptor(FILE_TYPE, blob), "annotations": {TITLE: uri}} for uri, blob in layers],
            "annotations": {TITLE: shipped.model, "org.opencontainers.image.version": shipped.release},
        }
    )
    layout = folder / LAYOUT
    wanted = {oci.blob_path(blob.digest): root / uri for uri, blob in layers}
    for name, source in wanted.items():
        oci.link(source, layout / name)
    for data in (EMPTY, content):
        wanted[oci.blob_path(oci.blob_of(data).digest)] = folder
        write_atomically(layout / oci.blob_path(oci.blob_of(data).digest), data)
    oci.write_index(layout, {shipped.release: content})
    for path in (layout / "blobs" / "sha256").iterdir():
        if f"blobs/sha256/{path.name}" not in wanted:
            path.unlink()
    return Artifact(
        folder=layout,
        manifest_digest=oci.blob_of(content).digest,
        num_files=len(layers),
        size_bytes=sum(blob.size_bytes for _, blob in layers),
    )
