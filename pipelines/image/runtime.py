"""Build the runtime bases of containers/: a base image, the wheels, the server. Models share them."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from pipelines.errors import ImageError
from pipelines.image import base as base_image
from pipelines.image import dockerfile, oci, wheels
from pipelines.image.base import Base
from pipelines.image.docker import DockerClient
from pipelines.store.files import file_digest, key_of
from pipelines.store.store import Record, Store

REPOSITORY = Path(__file__).parents[2]
CONTAINERS = REPOSITORY / "containers"
SERVING = REPOSITORY / "serving"
APP = "app"  # the context's folder of the server and its commands
APP_AT = "opt/enginery"


@dataclass(frozen=True, kw_only=True)
class Runtime:
    """A runtime base: what a model's layers are put on."""

    name: str  # "cpu", "rtx", "cuda"
    base: str  # what it starts from, in words
    image: oci.Image

    @property
    def digest(self) -> str:
        return oci.blob_of(self.image.manifest).digest


@dataclass(frozen=True, kw_only=True)
class _RuntimeSpec:
    """A runtime's Dockerfile, and the keys of the layers that it asks for."""

    name: str
    containers: Path
    file: dockerfile.Dockerfile
    keys: Mapping[dockerfile.Copy, str]


def prepare(
    names: Sequence[str],
    *,
    store: Store,
    docker: DockerClient | None,
    base: str | Path | None = None,
    containers: Path = CONTAINERS,
) -> dict[str, Runtime]:
    """The named runtime bases, built where their layers are not in the store. Raises ImageError.

    base: an image reference or a tar's path; None: see base_image.get.
    """
    specs = [_spec(name, containers) for name in names]
    start = base_image.get(base, containers, store, docker)
    here = f"{sys.version_info.major}.{sys.version_info.minor}"
    if start.python != here:
        raise ImageError(
            f"the base {start.name} has Python {start.python} and this is Python {here}: wheels resolved here "
            f"would not load there; run the build with Python {start.python} or give a base with Python {here}"
        )
    with store.workspace() as scratch:
        for spec in specs:
            _build(spec, scratch, store)
    return {spec.name: Runtime(name=spec.name, base=start.name, image=_image(spec, start, store)) for spec in specs}


def _spec(name: str, containers: Path) -> _RuntimeSpec:
    path = containers / name / "Dockerfile"
    if not path.is_file():
        raise ImageError(f"there is no runtime {name!r} in {containers}; the runtimes are cpu, rtx and cuda")
    file = dockerfile.read(path)
    # sys.version: this Python compiles the modules.
    key_inputs = {"format": oci.FORMAT, "python": sys.version}
    keys = {
        copy: key_of({**key_inputs, "source": copy.source, "target": copy.target, "from": _inputs(copy, containers)})
        for copy in file.copies
    }
    return _RuntimeSpec(name=name, containers=containers, file=file, keys=keys)


def _inputs(copy: dockerfile.Copy, containers: Path) -> Mapping[str, str]:
    """What a folder of the context is made from, by digest."""
    if copy.source == APP:
        sources = {f"serving/{path.relative_to(SERVING).as_posix()}": path for path in _sources(SERVING)}
        sources |= {f"bin/{path.name}": path for path in _sources(containers / "bin")}
    else:
        folder = containers / copy.source.removeprefix("lib/")
        sources = {name: folder / name for name in ("requirements.txt", "strip.txt")}
    return {name: file_digest(path) for name, path in sorted(sources.items())}


def _sources(folder: Path) -> Iterator[Path]:
    return (p for p in sorted(folder.rglob("*")) if p.is_file() and "__pycache__" not in p.parts)


def fill_context(context: Path, copies: Sequence[dockerfile.Copy], containers: Path, store: Store) -> None:
    """Put the folders that a Dockerfile copies into a context, where they are not there yet."""
    for copy in copies:
        target = context / copy.source
        if target.exists():
            continue
        if copy.source == APP:
            shutil.copytree(SERVING, target / "serving", ignore=shutil.ignore_patterns("__pycache__"))
            shutil.copytree(containers / "bin", target / "bin", symlinks=True)
            wheels.compile_all(target / "serving", prefix=f"/{APP_AT}/serving")
        else:
            requirements = containers / copy.source.removeprefix("lib/") / "requirements.txt"
            found = wheels.fetch(requirements, store.root / "wheels")
            wheels.install(requirements, found, target, prefix=f"/{copy.target}")


def _build(spec: _RuntimeSpec, scratch: Path, store: Store) -> None:
    """Put the layers into the store that are not there."""
    missing = [copy for copy, key in spec.keys.items() if store.record(key) is None]
    fill_context(scratch / "context", missing, spec.containers, store)
    for copy in missing:
        oci.write_layer(oci.tree(scratch / "context" / copy.source, copy.target), scratch / "layer")
        record = Record(
            key=spec.keys[copy],
            stage="runtime",
            subject=copy.source.replace("/", "-"),
            key_inputs={},
            outputs={"layer.tar": store.put(scratch / "layer")},
            facts={},
            duration_s=0.0,
            peak_rss_bytes=0,
        )
        store.write_record(record)


def _image(spec: _RuntimeSpec, start: Base, store: Store) -> oci.Image:
    records = {copy: store.record(key) for copy, key in spec.keys.items()}
    added = [oci.Layer(what=c.source, blob=r.outputs["layer.tar"]) for c, r in records.items() if r is not None]
    title = {"org.opencontainers.image.title": f"enginery runtime: {spec.name}"}
    return oci.assemble([*start.layers, *added], spec.file.over(start.settings), title)
