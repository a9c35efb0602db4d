"""Tar layers, image configs, manifests and layouts as bytes that depend on content only."""

from __future__ import annotations

import hashlib
import os
import shutil
import tarfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path, PurePosixPath
from typing import IO, Any

from pipelines.store.files import canonical, write_atomically
from pipelines.store.store import Blob, Store

# Raised when the same content would give other bytes: part of every key of an image.
FORMAT = 1
EPOCH = "1970-01-01T00:00:00Z"
MANIFEST_TYPE = "application/vnd.oci.image.manifest.v1+json"
CONFIG_TYPE = "application/vnd.oci.image.config.v1+json"
# Uncompressed: a layer's digest is then its diff id as well, no compressor's version can change it, and engine files,
# which hardly compress, load at the speed of the disk.
LAYER_TYPE = "application/vnd.oci.image.layer.v1.tar"

# What a machine or a package manager leaves in a base image and no container reads. Folders stay, their files go.
VOLATILE = ("etc/machine-id", "etc/hostname", "etc/hosts", "etc/resolv.conf", "var/cache/ldconfig/aux-cache")
VOLATILE_FOLDERS = ("var/log", "var/cache/apt", "var/cache/debconf", "var/lib/apt/lists", "tmp", "run", "root/.cache")


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One file, folder or link of a layer, owned by root."""

    name: str  # "opt/nim/etc/default/model_manifest.yaml"
    source: Path | bytes | None = None  # None: a folder, or a link if `target` is set
    target: str | None = None  # where a symbolic link points
    executable: bool = False


@dataclass(frozen=True, kw_only=True)
class Layer:
    """One layer of an image, and what it holds in a person's words."""

    what: str  # "lib/cpu", "engine 3fa2…"
    blob: Blob


@dataclass(frozen=True, kw_only=True)
class Image:
    """Everything of an image but its layers' bytes."""

    layers: tuple[Layer, ...]
    settings: Mapping[str, Any]  # the `config` part: Env, User, Entrypoint, …
    config: bytes
    manifest: bytes

    @property
    def size_bytes(self) -> int:
        return sum(layer.blob.size_bytes for layer in self.layers)


def tree(folder: Path, prefix: str) -> Iterator[Entry]:
    """A folder's content as entries below `prefix`; its modes are reduced to "may be executed" or not."""
    for path in sorted(folder.rglob("*")):
        name = f"{prefix}/{path.relative_to(folder).as_posix()}"
        if path.is_symlink():
            yield Entry(name=name, target=os.readlink(path))  # noqa: PTH115  # to the byte: a Path would shorten it
        elif path.is_dir():
            yield Entry(name=name)
        else:
            yield Entry(name=name, source=path, executable=bool(path.stat().st_mode & 0o100))


def write_layer(entries: Iterable[Entry], target: Path) -> None:
    """Write a layer: sorted, no clock, owner 0:0, every parent folder named."""
    named = {entry.name: entry for entry in entries}
    for name in list(named):
        for parent in PurePosixPath(name).parents:
            if str(parent) != ".":
                named.setdefault(str(parent), Entry(name=str(parent)))
    with tarfile.open(target, "w", format=tarfile.PAX_FORMAT) as archive:
        for _, entry in sorted(named.items()):
            info = tarfile.TarInfo(entry.name)
            if entry.target is not None:
                info.type, info.linkname, info.mode = tarfile.SYMTYPE, entry.target, 0o777
                archive.addfile(info)
            elif entry.source is None:
                info.type, info.mode = tarfile.DIRTYPE, 0o755
                archive.addfile(info)
            else:
                info.mode = 0o755 if entry.executable else 0o644
                if isinstance(entry.source, bytes):
                    info.size = len(entry.source)
                    archive.addfile(info, BytesIO(entry.source))
                else:
                    info.size = entry.source.stat().st_size
                    with entry.source.open("rb") as file:
                        archive.addfile(info, file)


def rewrite_layer(source: IO[bytes], target: Path) -> None:
    """Rewrite someone else's layer (compressed or not) as its content alone: sorted, no clock, nothing volatile."""
    with tarfile.open(fileobj=source) as given, tarfile.open(target, "w", format=tarfile.PAX_FORMAT) as archive:
        members = {_plain(m.name): m for m in given.getmembers()}
        members = {name: m for name, m in members.items() if name and not (_volatile(name) and not m.isdir())}
        # Which name of a hard-linked file carries its bytes is the archiver's choice; here it is the first of them.
        origin = {name: _origin(name, members) for name in members}
        leader: dict[str, str] = {}
        for name in sorted(members):
            member, data = members[name], members[origin[name]]
            info = tarfile.TarInfo(name)
            info.mode, info.uid, info.gid = member.mode, member.uid, member.gid
            info.type, info.devmajor, info.devminor = data.type, data.devmajor, data.devminor
            info.linkname = data.linkname if data.issym() else ""
            # File capabilities are content; access times and the like are not.
            info.pax_headers = {k: v for k, v in sorted(member.pax_headers.items()) if k.startswith("SCHILY.xattr.")}
            if not data.isreg():
                archive.addfile(info)
            elif (first := leader.setdefault(origin[name], name)) != name:
                info.type, info.linkname = tarfile.LNKTYPE, first
                archive.addfile(info)
            else:
                info.type, info.size = tarfile.REGTYPE, data.size
                archive.addfile(info, given.extractfile(data))


def _plain(name: str) -> str:
    return str(PurePosixPath("/", name)).strip("/")


def _volatile(name: str) -> bool:
    return name in VOLATILE or any(name.startswith(f"{folder}/") for folder in VOLATILE_FOLDERS)


def _origin(name: str, members: Mapping[str, tarfile.TarInfo]) -> str:
    seen = {name}
    while members[name].islnk():
        name = _plain(members[name].linkname)
        if name in seen or name not in members:
            raise ValueError(f"a hard link points to {name!r}, which is not in the layer")
        seen.add(name)
    return name


def assemble(layers: Sequence[Layer], settings: Mapping[str, Any], annotations: Mapping[str, str]) -> Image:
    """Config and manifest over layers. No creation time but the epoch, no container, no host."""
    settings = {key: value for key, value in settings.items() if value not in (None, "", False, [], {})}
    config = canonical(
        {
            "architecture": "amd64",
            "os": "linux",
            "created": EPOCH,
            "config": settings,
            "rootfs": {"type": "layers", "diff_ids": [layer.blob.digest for layer in layers]},
            "history": [{"created": EPOCH, "created_by": f"enginery: {layer.what}"} for layer in layers],
        }
    )
    manifest = canonical(
        {
            "schemaVersion": 2,
            "mediaType": MANIFEST_TYPE,
            "config": descriptor(CONFIG_TYPE, blob_of(config)),
            "layers": [descriptor(LAYER_TYPE, layer.blob) for layer in layers],
            "annotations": dict(annotations),
        }
    )
    return Image(layers=tuple(layers), settings=settings, config=config, manifest=manifest)


def blob_of(content: bytes) -> Blob:
    return Blob(digest="sha256:" + hashlib.sha256(content).hexdigest(), size_bytes=len(content))


def descriptor(media_type: str, blob: Blob) -> dict[str, Any]:
    return {"mediaType": media_type, "digest": blob.digest, "size": blob.size_bytes}


def archive_index(images: Mapping[str, Image]) -> bytes:
    """The `manifest.json` by which Docker since 1.10 loads a layout: {reference: image}."""
    return canonical(
        [
            {
                "Config": blob_path(blob_of(image.config).digest),
                "RepoTags": [reference],
                "Layers": [blob_path(layer.blob.digest) for layer in image.layers],
            }
            for reference, image in sorted(images.items())
        ]
    )


def blob_path(digest: str) -> str:
    return f"blobs/{digest.replace(':', '/')}"


def write_layout(folder: Path, images: Mapping[str, Image], store: Store) -> None:
    """Write an OCI image layout (and Docker's index beside it): blobs first, index last, then what nothing names goes.

    Blobs are links to the store's files where the file system allows it.
    """
    wanted: dict[str, Blob | bytes] = {}
    for image in images.values():
        wanted |= {layer.blob.digest: layer.blob for layer in image.layers}
        wanted |= {blob_of(content).digest: content for content in (image.config, image.manifest)}
    blobs = folder / "blobs" / "sha256"
    blobs.mkdir(parents=True, exist_ok=True)
    for digest, blob in sorted(wanted.items()):
        path = folder / blob_path(digest)
        if isinstance(blob, bytes):
            write_atomically(path, blob)
        elif not path.exists() or path.stat().st_size != blob.size_bytes:
            link(store.path(digest), path)
    write_atomically(folder / "manifest.json", archive_index(images))
    platform = {"platform": {"architecture": "amd64", "os": "linux"}}
    write_index(folder, {reference: image.manifest for reference, image in images.items()}, platform)
    for path in blobs.iterdir():
        if f"sha256:{path.name}" not in wanted:
            path.unlink()


def write_index(folder: Path, manifests: Mapping[str, bytes], more: Mapping[str, Any] | None = None) -> None:
    """Write what makes a folder of blobs an OCI layout: {reference: manifest}."""
    listed = [
        {
            **descriptor(MANIFEST_TYPE, blob_of(content)),
            **(more or {}),
            "annotations": {"org.opencontainers.image.ref.name": reference},
        }
        for reference, content in sorted(manifests.items())
    ]
    index = {"schemaVersion": 2, "mediaType": "application/vnd.oci.image.index.v1+json", "manifests": listed}
    write_atomically(folder / "oci-layout", canonical({"imageLayoutVersion": "1.0.0"}))
    write_atomically(folder / "index.json", canonical(index))


def link(source: Path, target: Path) -> None:
    """Put a file at `target` at once: a hard link where the file system allows it, else a copy."""
    target.parent.mkdir(parents=True, exist_ok=True)
    part = target.with_name(f".{target.name}.part")
    part.unlink(missing_ok=True)
    try:
        os.link(source, part)
    except OSError:
        shutil.copyfile(source, part)
    part.replace(target)
    part.unlink(missing_ok=True)  # renaming one link of a file over another of the same file does nothing


def docker_archive(images: Mapping[str, Image], store: Store, left_out: frozenset[str]) -> Iterator[bytes]:
    """A tar stream that `docker load` takes. Layers in `left_out` are named and not sent: Docker has them."""
    small = {"manifest.json": archive_index(images)}
    small |= {blob_path(blob_of(image.config).digest): image.config for image in images.values()}
    layers = {layer.blob.digest: layer.blob for image in images.values() for layer in image.layers}
    for name, content in small.items():
        yield _header(name, len(content)) + content + _padding(len(content))
    for digest, blob in layers.items():
        if digest not in left_out:
            yield _header(blob_path(digest), blob.size_bytes)
            with store.path(digest).open("rb") as file:
                while chunk := file.read(1 << 20):
                    yield chunk
            yield _padding(blob.size_bytes)
    yield bytes(2 * tarfile.BLOCKSIZE)


def _header(name: str, size_bytes: int) -> bytes:
    info = tarfile.TarInfo(name)
    info.size, info.mode = size_bytes, 0o644
    return info.tobuf(tarfile.PAX_FORMAT)


def _padding(size_bytes: int) -> bytes:
    return bytes(-size_bytes % tarfile.BLOCKSIZE)
