"""What is published of a model, as one small document: manifest by digest, gate figures, images, SKUs. Pure values.

The document (release.json) is canonical JSON whose digest pins everything: it names the manifest by digest, and the
manifest names every file by digest. `enginery inspect`, `explain` and `diff` need these two alone.
"""

from __future__ import annotations

import hashlib
import json
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from pipelines.errors import PublishError
from pipelines.image import build, oci, package
from pipelines.image.package import Candidate, Package
from pipelines.matrix.values import Matrix, Model, Sku
from pipelines.store.files import canonical, file_digest, write_atomically
from serving.contract import manifest
from serving.contract.manifest import Manifest
from serving.contract.profile import ProfileFile
from serving.errors import ManifestError

SCHEMA_VERSION = 1
DOCUMENT = "release.json"
MANIFEST = "model_manifest.yaml"
MAX_BYTES = 16 << 20  # of a document


class Check(msgspec.Struct, frozen=True, kw_only=True):
    """One figure of the gate."""

    name: str  # "cosine_mean"
    value: float | None
    threshold: float | None
    passed: bool | None


class Verdict(msgspec.Struct, frozen=True, kw_only=True):
    """What the gate found of a row that ships."""

    evaluated: str = msgspec.field(name="judged_on")  # "engine" or "typed-onnx"
    judged_with: str  # "onnxruntime 1.31.1"
    checks: tuple[Check, ...]


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


class ImageFacts(msgspec.Struct, frozen=True, kw_only=True):
    """One image of the model. Its registry name is where it was published; its digest is the same everywhere."""

    runtime: str  # "cpu"
    kind: str  # "full" or "slim"
    digest: str  # of its manifest
    size_bytes: int


class Release(msgspec.Struct, frozen=True, kw_only=True):
    """release.json."""

    schema_version: int
    model: str
    release: str  # "0.1.0"
    manifest: str  # digest of model_manifest.yaml
    verdicts: Mapping[str, Verdict] = {}  # row -> figures; of the rows that ship
    left_out: Mapping[str, tuple[str, ...]] = {}  # row -> why it does not ship
    images: tuple[ImageFacts, ...] = ()
    skus: Mapping[str, SkuFacts] = {}
    runtimes: tuple[str, ...] = ()  # ("rtx", "cpu"): whose images this model has
    versions: Mapping[str, str] = {}  # backend -> version that the engines were compiled with and images execute with


@dataclass(frozen=True, kw_only=True)
class Published:
    """A release with its manifest: everything that can be known of it without a blob."""

    document: Release
    manifest: Manifest
    manifest_bytes: bytes

    @property
    def digest(self) -> str:
        return digest_of(self.dump())

    def dump(self) -> bytes:
        return canonical(msgspec.to_builtins(self.document))

    @property
    def files(self) -> Mapping[str, ProfileFile]:
        """uri -> file, of those that are published with it."""
        return {f.uri: f for profile in self.manifest.profiles for f in profile.files if "://" not in f.uri}


def digest_of(data: bytes) -> str:
    return "sha256:" + hashlib.sha256(data).hexdigest()


def load(document: bytes, manifest_bytes: bytes, *, source: str) -> Published:
    """A release out of its two files; raises PublishError. Unknown fields are of a later version, and left alone."""
    try:
        read = msgspec.json.decode(document, type=Release)
    except (msgspec.DecodeError, msgspec.ValidationError) as error:
        raise PublishError(f"{source}: {DOCUMENT} is not a release of this version of enginery ({error})") from None
    if read.schema_version != SCHEMA_VERSION:
        what = f"{source}: {DOCUMENT} has schema_version {read.schema_version}, this enginery reads {SCHEMA_VERSION}"
        raise PublishError(f"{what}; use the enginery that published it, or a later one")
    if (found := digest_of(manifest_bytes)) != read.manifest:
        raise PublishError(
            f"{source}: {MANIFEST} hashes to {found}, the release says {read.manifest}; publish it again"
        )
    try:
        listed = manifest.load(manifest_bytes, source=f"{source}: {MANIFEST}")
    except ManifestError as error:
        raise PublishError(str(error)) from None
    return Published(document=read, manifest=listed, manifest_bytes=manifest_bytes)


def of_folder(folder: Path) -> Published:
    """The release that dist/MODEL is; raises PublishError. Blobs are not read: publishing hashes them as it sends."""
    path = folder / package.ROOT / package.MANIFEST
    if not path.is_file():
        raise PublishError(f"{path} is not there; build the model first: enginery build")
    data = path.read_bytes()
    try:
        listed = manifest.load(data, source=str(path))
    except ManifestError as error:
        raise PublishError(f"{error}; build the model again") from None
    summary = _summary(folder / "package.json", digest_of(data))
    document = Release(
        schema_version=SCHEMA_VERSION,
        model=listed.model,
        release=listed.release,
        manifest=digest_of(data),
        images=_images(folder, listed),
        **{name: summary[name] for name in ("verdicts", "left_out", "skus", "runtimes", "versions") if name in summary},
    )
    # Through the form and back: what cannot be read is never published.
    return load(canonical(msgspec.to_builtins(document)), data, source=str(folder))


def write_summary(
    made: Package,
    candidates: Sequence[Candidate],
    matrix: Matrix,
    model: Model,
    *,
    key: str,
    versions: Mapping[str, str],
) -> dict[str, Any]:
    """Write package.json: what the next build compares with, and what a release tells besides its manifest."""
    summary = {
        "key": key,
        "manifest_digest": file_digest(made.folder / "model_manifest.yaml"),
        "files": {file.uri: file.size_bytes for profile in made.manifest.profiles for file in profile.files},
        "shipped": [profile.name for profile in made.manifest.profiles],
        "left_out": made.left_out,
        "notes": made.warnings,
        "verdicts": {c.row.name: c.verdict for c in candidates if c.verdict["passed"]},
        "versions": versions,
        "runtimes": model.runtimes,
        "skus": {sku.name: facts(sku) for sku in matrix.skus.values()},
    }
    data = canonical(summary)
    write_atomically(made.folder / "package.json", data)
    written: dict[str, Any] = json.loads(data)
    return written


def _summary(path: Path, manifest_digest: str) -> Mapping[str, Any]:
    """What the build wrote down beside the manifest; nothing if it is of another one."""
    try:
        summary: dict[str, Any] = json.loads(path.read_bytes())
    except FileNotFoundError:
        return {}
    return summary if summary.get("manifest_digest") == manifest_digest else {}


def _images(folder: Path, listed: Manifest) -> tuple[ImageFacts, ...]:
    """The images that were built of this very manifest; raises PublishError for those of another one."""
    path = folder / "images.json"
    found = json.loads(path.read_bytes()) if path.is_file() else []
    stale = [
        one["reference"] for one in found if _manifest_layer(one["layers"]) != _layer_digest(listed, one["runtime"])
    ]
    if stale:
        raise PublishError(f"{', '.join(stale)}: built of an earlier manifest; build the images again: enginery build")
    return tuple(
        ImageFacts(
            runtime=one["runtime"],
            kind=one["kind"],
            digest=one["digest"],
            size_bytes=one["size_bytes"],
        )
        for one in sorted(found, key=lambda one: (one["runtime"], one["kind"]))
    )


def _manifest_layer(layers: Sequence[Mapping[str, Any]]) -> str:
    return next((str(layer["digest"]) for layer in layers if layer["what"] == "manifest"), "")


def _layer_digest(listed: Manifest, runtime: str) -> str:
    """The digest of the layer by which an image of this runtime has its manifest."""
    data = manifest.dump(build.offer(listed, runtime))
    with tempfile.TemporaryDirectory() as scratch:
        layer = Path(scratch, "layer")
        oci.write_layer([oci.Entry(name=f"{build.ROOT}/{package.MANIFEST}", source=data)], layer)
        return digest_of(layer.read_bytes())


def facts(sku: Sku) -> dict[str, Any]:
    """A SKU of the matrix as the document has it."""
    return {name: getattr(sku, name) for name in SkuFacts.__struct_fields__}
