"""package.json: what was packaged of a model and why the rest was not; the next build and the release read it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec

from pipelines.errors import PackageError
from pipelines.gate import verdict as verdicts
from pipelines.gate.verdict import Verdict
from pipelines.image import package
from pipelines.image.package import Candidate
from pipelines.matrix.values import Model, Sku
from pipelines.store.files import canonical, digest_of, file_digest, key_of, write_atomically

FILE = "package.json"  # in dist/<model>
MANIFEST = Path(package.MANIFEST).name
FORMAT = 2  # part of the key: raised when the same package would be written down otherwise


class SkuFacts(msgspec.Struct, frozen=True, kw_only=True):
    """What the matrix says of a SKU: enough to know what a server on it would choose."""

    kind: str  # "gpu" or "cpu"
    compute_capability: str | None = None
    pci_ids: tuple[str, ...] = ()
    product: str | None = None
    memory_gib: float | None = None
    gpus_per_node: int = 0
    cpu_arch: str | None = None
    cpu_features: tuple[str, ...] = ()


class Packaged(msgspec.Struct, frozen=True, kw_only=True):
    """The file."""

    key: str  # over all that the package was made of
    manifest_digest: str
    files: Mapping[str, int] = {}  # uri below the root -> bytes
    shipped: tuple[str, ...] = ()  # rows
    left_out: Mapping[str, tuple[str, ...]] = {}  # row -> why it does not ship
    notes: tuple[str, ...] = ()
    verdicts: Mapping[str, Verdict] = {}  # of the rows that ship
    versions: Mapping[str, str] = {}  # backend -> version that engines were compiled with and images execute with
    runtimes: tuple[str, ...] = ()  # ("rtx", "cpu")
    skus: Mapping[str, SkuFacts] = {}

    def dump(self) -> bytes:
        fields: dict[str, Any] = msgspec.to_builtins(self)
        return canonical({**fields, "verdicts": {row: verdict.content() for row, verdict in self.verdicts.items()}})


def load(folder: Path) -> Packaged | None:
    """What was packaged in dist/MODEL; None where nothing was. Raises PackageError for a file that cannot be read."""
    path = folder / FILE
    try:
        return msgspec.json.decode(path.read_bytes(), type=Packaged)
    except FileNotFoundError:
        return None
    except msgspec.DecodeError as error:
        raise PackageError(f"{path} is not readable ({error}); remove it and run the build again") from None


def ensure_packaged(
    model: Model,
    candidates: Sequence[Candidate],
    shared: Mapping[str, Path],
    *,
    folder: Path,
    versions: Mapping[str, str],
    skus: Mapping[str, Sku],
    unbuilt: Mapping[str, str],
) -> tuple[Packaged, bool]:
    """Package a model (image.package) and write package.json, unless dist/MODEL holds this very package already.

    versions: backend -> version. unbuilt: row -> why it has no engine. Returns the package and whether it was reused.
    """
    key = key_of(
        {
            "rows": {c.row.name: package.tags_of(c.row, c.versions(versions), c.size_bytes) for c in candidates},
            "verdicts": {c.row.name: digest_of(verdicts.dump(c.verdict)) for c in candidates},
            "shared": {name: file_digest(path) for name, path in shared.items()},
            "unbuilt": unbuilt,
            "release": model.release,
            "summary": FORMAT,
        }
    )
    standing = load(folder)
    if standing is not None and standing.key == key and intact(folder, standing):
        return standing, True
    shipped = package.package(model, candidates, shared, versions, folder, unbuilt=unbuilt)
    packaged = Packaged(
        key=key,
        manifest_digest=file_digest(folder / MANIFEST),
        files={file.uri: file.size_bytes for profile in shipped.manifest.profiles for file in profile.files},
        shipped=tuple(profile.name for profile in shipped.manifest.profiles),
        left_out=shipped.left_out,
        notes=shipped.warnings,
        verdicts={c.row.name: c.verdict for c in candidates if c.verdict.passed},
        versions=versions,
        runtimes=model.runtimes,
        skus={
            name: SkuFacts(**{field: getattr(sku, field) for field in SkuFacts.__struct_fields__})
            for name, sku in skus.items()
        },
    )
    write_atomically(folder / FILE, packaged.dump())
    return packaged, False


def intact(folder: Path, packaged: Packaged) -> bool:
    """Whether dist/MODEL still holds what was packaged: the manifest by digest, its files by size."""
    root = folder / package.ROOT
    for manifest in (folder / MANIFEST, root / package.MANIFEST):
        if not manifest.exists() or file_digest(manifest) != packaged.manifest_digest:
            return False
    return all((root / uri).exists() and (root / uri).stat().st_size == size for uri, size in packaged.files.items())
