"""What is published of a model, as one small document: manifest by digest, gate figures, images, SKUs. Pure values.

The document (release.json) is canonical JSON whose digest pins everything: it names the manifest by digest, and the
manifest names every file by digest. `enginery inspect`, `explain` and `diff` need these two alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import msgspec

from pipelines.errors import PublishError
from pipelines.gate.verdict import Verdict
from pipelines.image import images, package, package_file
from pipelines.image.build import is_of
from pipelines.image.package_file import Packaged, SkuFacts
from pipelines.store.files import canonical, digest_of
from serving.contract import manifest
from serving.contract.manifest import Manifest
from serving.contract.profile import ProfileFile
from serving.errors import ManifestError

SCHEMA_VERSION = 1
DOCUMENT = "release.json"
MANIFEST = "model_manifest.yaml"
MAX_BYTES = 16 << 20  # of a document


class Figure(msgspec.Struct, frozen=True, kw_only=True):
    """One figure of the gate."""

    name: str  # "cosine_mean"
    value: float | None
    threshold: float | None
    passed: bool | None


class Figures(msgspec.Struct, frozen=True, kw_only=True):
    """What the gate found of a row that ships."""

    evaluated: str = msgspec.field(name="judged_on")  # "engine" or "typed-onnx"
    judged_with: str  # "onnxruntime 1.31.1"
    checks: tuple[Figure, ...]


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
    verdicts: Mapping[str, Figures] = {}  # row -> figures; of the rows that ship
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


def load(document: bytes, manifest_bytes: bytes, *, source: str) -> Published:
    """A release out of its two files; raises PublishError. Unknown fields are of a later version, and left alone."""
    try:
        read = msgspec.json.decode(document, type=Release)
    except (msgspec.DecodeError, msgspec.ValidationError) as error:
        raise PublishError(f"{source}: {DOCUMENT} is not a release of this version of enginery ({error})") from None
    if read.schema_version != SCHEMA_VERSION:
        what = f"{source}: {DOCUMENT} has schema_version {read.schema_version}, this enginery reads {SCHEMA_VERSION}"
        raise PublishError(f"{what}; use the enginery that published it, or a later one")
    if (digest := digest_of(manifest_bytes)) != read.manifest:
        raise PublishError(
            f"{source}: {MANIFEST} hashes to {digest}, the release says {read.manifest}; publish it again"
        )
    try:
        shipped = manifest.load(manifest_bytes, source=f"{source}: {MANIFEST}")
    except ManifestError as error:
        raise PublishError(str(error)) from None
    return Published(document=read, manifest=shipped, manifest_bytes=manifest_bytes)


def of_folder(folder: Path) -> Published:
    """The release that dist/MODEL is; raises PublishError. Blobs are not read: publishing hashes them as it sends."""
    path = folder / package.ROOT / package.MANIFEST
    if not path.is_file():
        raise PublishError(f"{path} is not there; build the model first: enginery build")
    data = path.read_bytes()
    try:
        shipped = manifest.load(data, source=str(path))
    except ManifestError as error:
        raise PublishError(f"{error}; build the model again") from None
    packaged = package_file.load(folder)
    if packaged is None or packaged.manifest_digest != digest_of(data):  # of another manifest
        packaged = Packaged(key="", manifest_digest=digest_of(data))
    document = Release(
        schema_version=SCHEMA_VERSION,
        model=shipped.model,
        release=shipped.release,
        manifest=packaged.manifest_digest,
        verdicts={row: _figures(verdict) for row, verdict in packaged.verdicts.items()},
        left_out=packaged.left_out,
        images=_images(folder, shipped),
        skus=packaged.skus,
        runtimes=packaged.runtimes,
        versions=packaged.versions,
    )
    # Through the form and back: what cannot be read is never published.
    return load(canonical(msgspec.to_builtins(document)), data, source=str(folder))


def _figures(verdict: Verdict) -> Figures:
    figures = [Figure(name=c.name, value=c.value, threshold=c.threshold, passed=c.passed) for c in verdict.checks]
    return Figures(evaluated=verdict.evaluated, judged_with=verdict.judged_with, checks=tuple(figures))


def _images(folder: Path, shipped: Manifest) -> tuple[ImageFacts, ...]:
    """The images that were built of this very manifest; raises PublishError for those of another one."""
    built = images.load(folder)
    stale = [image.reference for image in built if not is_of(image, shipped)]
    if stale:
        raise PublishError(f"{', '.join(stale)}: built of an earlier manifest; build the images again: enginery build")
    return tuple(
        ImageFacts(runtime=image.runtime, kind=image.kind, digest=image.manifest_digest, size_bytes=image.size_bytes)
        for image in sorted(built, key=lambda image: (image.runtime, image.kind))
    )
