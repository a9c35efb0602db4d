"""The manifest that the repository's own matrix would give, were every row built and passed."""

from __future__ import annotations

from collections.abc import Iterable

from pipelines.image.package import SHARED, tags_of
from pipelines.matrix.compilers import COMPILERS
from pipelines.matrix.values import Row
from serving.contract import manifest
from serving.contract.manifest import Manifest
from serving.contract.profile import Profile, ProfileFile
from tests.support.published import VERSIONS

MODEL = "all-minilm-l6-v2"

ENGINE_BYTES = 50_000_000


def profile_of(row: Row) -> Profile:
    tags = tags_of(row, VERSIONS, ENGINE_BYTES)
    names = (f"engine{COMPILERS[row.sku.compiler].file_suffix}", *SHARED)
    files = []
    for name in names:
        digest = manifest.profile_id({"row": row.name if name.startswith("engine") else MODEL, "file": name})
        files.append(
            ProfileFile(path=name, uri=f"blobs/blake3/{digest}", checksum=f"blake3:{digest}", size_bytes=ENGINE_BYTES)
        )
    return Profile(id=manifest.profile_id(tags), name=row.name, tags=tags, files=tuple(files), proof_min_cosine=0.99)


def dump(rows: Iterable[Row]) -> bytes:
    return manifest.dump(Manifest(model=MODEL, release="0.1.0", profiles=tuple(profile_of(row) for row in rows)))
