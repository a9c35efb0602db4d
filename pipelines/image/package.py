"""Engines with passing verdicts -> model_manifest.yaml and the files it names: what an image has below /opt/nim."""

from __future__ import annotations

import hashlib
import math
import shutil
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from blake3 import blake3

from pipelines.errors import PackageError
from pipelines.gate.verdict import Verdict
from pipelines.matrix.compilers import COMPILERS
from pipelines.matrix.values import Model, Row
from pipelines.store.files import write_atomically
from serving.contract import manifest
from serving.contract.manifest import Manifest
from serving.contract.profile import Profile, ProfileFile
from serving.tasks.base import file_stem, suffixed

ROOT = "rootfs/opt/nim"
MANIFEST = "etc/default/model_manifest.yaml"
SHARED = ("proof.json", "task.json", "tokenizer.json")  # what every profile of a model has beside its engine
VENDOR = "10de"  # NVIDIA's PCI vendor id: the operator matches "26b9:10de"
GB = 10**9  # as in min_vram_per_device_gb


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """A row whose engines were built and judged."""

    row: Row
    engines: Mapping[str, Path]  # tower -> file
    verdict: Verdict
    version: str | None = None  # of the library that compiled it, where that is known better than by this machine's

    @property
    def size_bytes(self) -> int:
        return sum(path.stat().st_size for path in self.engines.values())

    def versions(self, here: Mapping[str, str]) -> Mapping[str, str]:
        """Backend -> version, for its tags."""
        return here if self.version is None else {**here, COMPILERS[self.row.sku.compiler].backend: self.version}


@dataclass(frozen=True, kw_only=True)
class Package:
    """What a model ships."""

    folder: Path  # dist/<model>
    manifest: Manifest
    left_out: Mapping[str, tuple[str, ...]]  # row -> why it does not ship
    warnings: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class _File:
    """Bytes on disk under the three names that they go by."""

    source: Path
    sha256: str  # as verdicts and the store name them: "sha256:…"
    blake3: str  # as the manifest names them, without the algorithm
    size_bytes: int

    def at(self, path: str) -> ProfileFile:
        uri = f"blobs/blake3/{self.blake3}"
        return ProfileFile(path=path, uri=uri, checksum=f"blake3:{self.blake3}", size_bytes=self.size_bytes)


@dataclass
class _Files:
    """Reads each file once, however many rows share it."""

    read: dict[Path, _File] = field(default_factory=dict)

    def of(self, path: Path) -> _File:
        if path not in self.read:
            sha256, b3, size_bytes = hashlib.sha256(), blake3(), 0
            with path.open("rb") as file:
                while chunk := file.read(1 << 20):
                    sha256.update(chunk)
                    b3.update(chunk)
                    size_bytes += len(chunk)
            digest = f"sha256:{sha256.hexdigest()}"
            self.read[path] = _File(source=path, sha256=digest, blake3=b3.hexdigest(), size_bytes=size_bytes)
        return self.read[path]


def package(
    model: Model,
    candidates: Iterable[Candidate],
    shared: Mapping[str, Path],
    versions: Mapping[str, str],
    folder: Path,
    *,
    unbuilt: Mapping[str, str] | None = None,
) -> Package:
    """Write what ships of a model to `folder` (dist/<model>), or raise PackageError and leave the folder as it was.

    shared: tokenizer.json, task.json and proof.json. versions: backend -> version of the library that compiled for it.
    unbuilt: rows that have no engine, and why; they are named if nothing ships.
    """
    files = _Files()
    judged = sorted(candidates, key=lambda candidate: candidate.row.name)
    problems = [f"{name}: the model has no such file; export it again" for name in SHARED if name not in shared]
    problems += [p for candidate in judged for p in _problems(candidate, files)]
    if problems:
        raise PackageError("\n".join([f"{model.name} cannot be packaged:", *(f"  {p}" for p in problems)]))
    left_out = {c.row.name: c.verdict.reasons for c in judged if not c.verdict.passed}
    left_out |= {row: (why,) for row, why in (unbuilt or {}).items()}
    passed = [candidate for candidate in judged if candidate.verdict.passed]
    if not passed:
        reasons = [f"  {row}: {'; '.join(why)}" for row, why in sorted(left_out.items())] or ["  it has no rows"]
        remedy = "raise a precision, or change the gates in the matrix if they ask too much"
        raise PackageError("\n".join([f"no profile of {model.name} may ship; {remedy}:", *reasons]))
    common = tuple(files.of(shared[name]).at(name) for name in SHARED)
    profiles = tuple(_profile(candidate, files, common, versions) for candidate in passed)
    shipped = Manifest(model=model.name, release=model.release, profiles=profiles)
    checksums = {file.checksum for profile in profiles for file in profile.files}
    sources = {file.blake3: file.source for file in files.read.values() if f"blake3:{file.blake3}" in checksums}
    write(folder, shipped, sources)
    return Package(folder=folder, manifest=shipped, left_out=left_out, warnings=tuple(_warnings(model, profiles)))


def _problems(candidate: Candidate, files: _Files) -> Iterable[str]:
    """Why a verdict does not belong to its engine. A verdict that failed needs no engine."""
    name, verdict = candidate.row.name, candidate.verdict
    if verdict.row != name:
        yield f"{name}: its verdict is of {verdict.row}; judge it again"
    elif verdict.passed:
        for tower, path in candidate.engines.items():
            what = suffixed("engine", tower)
            judged, digest = verdict.digests.get(what), files.of(path).sha256
            if judged != digest:
                yield f"{name}: the verdict judged {judged}, the {what} is {digest}; judge it again"


def _profile(
    candidate: Candidate, files: _Files, common: Sequence[ProfileFile], versions: Mapping[str, str]
) -> Profile:
    row = candidate.row
    engines = {tower: files.of(path) for tower, path in candidate.engines.items()}
    tags = tags_of(row, candidate.versions(versions), sum(engine.size_bytes for engine in engines.values()))
    suffix = COMPILERS[row.sku.compiler].file_suffix
    ours = (*(engine.at(file_stem(tower) + suffix) for tower, engine in engines.items()), *common)
    profile = Profile(
        id=manifest.profile_id(tags),
        name=row.name,
        tags=tags,
        files=tuple(sorted(ours, key=lambda file: file.path)),
        proof_min_cosine=candidate.verdict.proof_min_cosine,
    )
    return replace(profile, digest=manifest.content_digest(profile))


def tags_of(row: Row, versions: Mapping[str, str], engine_bytes: int) -> dict[str, str]:
    """The tags of a row's profile: what selection, and NIM's operator, know of it. All values are text."""
    sku = row.sku
    compiler = COMPILERS[sku.compiler]
    backend, model_type = compiler.backend, compiler.model_type
    tags = {
        "backend": backend,
        "model_type": model_type,
        "sku": sku.name,
        "precision": row.precision.value,
        "tp": str(row.tp),
    }
    if sku.kind == "gpu":
        # An estimate, on the safe side: the weights twice (file and device), and room for the driver and activations.
        memory_gb = math.ceil((2 * engine_bytes / row.tp + GB) / GB)
        tags |= {
            "gpu": sku.product or sku.name,
            "gpu_device": ",".join(f"{pci_id}:{VENDOR}" for pci_id in sku.pci_ids),
            "compute_capability": sku.compute_capability or "",
            "number_of_gpus": str(row.tp),
            "trt_version": versions[backend],
            "cpu_arch": sku.cpu_arch or "x86_64",
            "min_vram_per_device_gb": str(memory_gb),
        }
        if backend == "tensorrt-rtx":
            tags["min_driver_version"] = "580"  # the first of CUDA 13, which its wheels are built for
    elif backend == "openvino":
        tags |= {"cpu_arch": sku.cpu_arch or "x86_64", "openvino_version": versions[backend]}
        if sku.cpu_features:
            tags |= {"cpu_features": ",".join(sku.cpu_features), "cpu_isa": sku.cpu_isa or ""}
    return tags


def _warnings(model: Model, profiles: Sequence[Profile]) -> Iterable[str]:
    if not any(profile.backend == "onnxruntime" for profile in profiles):
        yield (
            f"{model.name} ships no generic profile: a machine that fits none of its SKUs cannot serve it; "
            "build it for a CPU SKU whose compiler is onnx"
        )


def write(folder: Path, shipped: Manifest, sources: Mapping[str, Path]) -> None:
    """Files first, by digest; the manifest that names them last; then what nothing names any more goes.

    A crash leaves the manifest that was there, with all its files.
    """
    data = manifest.dump(shipped)
    root = folder / ROOT
    blobs = root / "blobs" / "blake3"
    for digest, source in sorted(sources.items()):
        if not holds(blobs / digest, digest):
            _copy(source, blobs / digest)
    write_atomically(root / MANIFEST, data)
    write_atomically(folder / Path(MANIFEST).name, data)
    for path in blobs.iterdir():
        if path.name not in sources:
            path.unlink()


def holds(path: Path, digest: str) -> bool:
    """Whether a file is there with bytes of this BLAKE3 digest."""
    return path.is_file() and blake3().update_mmap(path).hexdigest() == digest


def _copy(source: Path, target: Path) -> None:
    """A copy, not a link: people look at dist and change it, and the store must not change with it."""
    target.parent.mkdir(parents=True, exist_ok=True)
    part = target.with_name(f".{target.name}.part")
    shutil.copyfile(source, part)
    part.chmod(0o644)
    part.replace(target)
