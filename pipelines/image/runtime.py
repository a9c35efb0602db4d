"""Build the runtime bases of containers/: a base image, the wheels, the server. Models share them."""

from __future__ import annotations

import shutil
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pipelines.errors import ImageError
from pipelines.image import base as base_image
from pipelines.image import dockerfile, oci, wheels
from pipelines.image.base import Base
from pipelines.image.docker import Engine
from pipelines.store.files import file_digest, key_of
from pipelines.store.store import Record, Store

REPOSITORY = Path(__file__).parents[2]
CONTAINERS = REPOSITORY / "containers"
SERVING = REPOSITORY / "serving"
APP = "app"  # the context's folder of the server and its commands
APP_AT = "opt/enginery"

# Who makes the layers. "engine": `docker build`. "host": this process, from the same Dockerfile, to the same digests
# (docs/adr/0002-images.md). "auto": the engine where one is there and packages must be installed anyway; a change of
# the server alone costs the engine half a minute and the host a second.
Builder = Literal["auto", "engine", "host"]


@dataclass(frozen=True, kw_only=True)
class Runtime:
    """A runtime base: what a model's layers are put on."""

    name: str  # "cpu", "rtx", "cuda"
    base: str  # what it starts from, in words
    image: oci.Image
    built: tuple[str, ...]  # the layers that were not in the store: ("lib/cpu", "app")
    built_by: str | None  # "engine" or "host"; None: nothing was built
    duration_s: float

    @property
    def digest(self) -> str:
        return oci.blob_of(self.image.manifest).digest


@dataclass(frozen=True, kw_only=True)
class _Plan:
    """A runtime, and the keys of the layers that its Dockerfile asks for."""

    name: str
    containers: Path
    file: dockerfile.Dockerfile
    keys: Mapping[dockerfile.Copy, str]

    def missing(self, store: Store) -> list[dockerfile.Copy]:
        return [copy for copy, key in self.keys.items() if store.record(key) is None]


def prepare(
    names: Sequence[str],
    *,
    store: Store,
    engine: Engine | None,
    base: str | Path | None = None,
    containers: Path = CONTAINERS,
    builder: Builder = "auto",
) -> dict[str, Runtime]:
    """The named runtime bases, built where their layers are not in the store. Raises ImageError.

    base: an image reference or a tar's path; None: see base_image.get.
    """
    plans = [_plan(name, containers) for name in names]
    start = base_image.get(base, containers, store, engine)
    here = f"{sys.version_info.major}.{sys.version_info.minor}"
    if start.python != here:
        raise ImageError(
            f"the base {start.name} has Python {start.python} and this is Python {here}: wheels resolved here "
            f"would not load there; run the build with Python {start.python} or give a base with Python {here}"
        )
    if builder == "engine" and engine is None:
        raise ImageError("the engine is asked to build, and no Docker engine can be reached")
    runtimes: dict[str, Runtime] = {}
    with store.workspace() as scratch:
        for plan in plans:
            began = time.monotonic()
            missing = plan.missing(store)
            packages = any(copy.source != APP for copy in missing)
            by_engine = bool(missing) and (builder == "engine" or (builder == "auto" and packages))
            if engine is not None and by_engine:
                missing = list(plan.file.copies)
                _build_in_engine(plan, start, scratch, store, engine)
            else:
                by_engine = False
                _build_here(plan, missing, scratch, store)
            runtimes[plan.name] = Runtime(
                name=plan.name,
                base=start.name,
                image=_image(plan, start, store),
                built=tuple(copy.source for copy in missing),
                built_by=None if not missing else "engine" if by_engine else "host",
                duration_s=round(time.monotonic() - began, 3),
            )
    return runtimes


def _plan(name: str, containers: Path) -> _Plan:
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
    return _Plan(name=name, containers=containers, file=file, keys=keys)


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


def _build_here(plan: _Plan, missing: Sequence[dockerfile.Copy], scratch: Path, store: Store) -> None:
    fill_context(scratch / "context", missing, plan.containers, store)
    for copy in missing:
        oci.write_layer(oci.tree(scratch / "context" / copy.source, copy.target), scratch / "layer")
        _keep(plan, copy, scratch / "layer", store)


def _build_in_engine(plan: _Plan, start: Base, scratch: Path, store: Store, engine: Engine) -> None:
    context, copies = scratch / "context", plan.file.copies
    fill_context(context, copies, plan.containers, store)
    entries = [entry for copy in copies for entry in oci.tree(context / copy.source, copy.source)]
    entries.append(oci.Entry(name="Dockerfile", source=plan.containers / plan.name / "Dockerfile"))
    built = engine.build(entries, _in_engine(start, engine, store), scratch / "context.tar")
    try:
        said, num_layers = engine.settings_of(built)
        mine = plan.file.over(start.settings)
        said = {key: value for key, value in said.items() if key in dockerfile.KEPT and value}
        if num_layers != len(start.layers) + len(copies) or said != mine:
            raise ImageError(
                f"the engine reads {plan.name}/Dockerfile otherwise than pipelines/image/dockerfile.py:\n"
                f"  engine: {num_layers} layers, {said}\n  here: {len(start.layers) + len(copies)} layers, {mine}"
            )
        for number, stream in enumerate(engine.save_layers(built, scratch / "saved")):
            if number >= len(start.layers):
                oci.rewrite_layer(stream, scratch / "layer")
                _keep(plan, copies[number - len(start.layers)], scratch / "layer", store)
    finally:
        engine.remove(built)


def _in_engine(start: Base, engine: Engine, store: Store) -> str:
    """The base under a name that a Dockerfile can start from; a base that came as a tar is imported."""
    if start.reference is not None:
        return start.reference
    (layer,) = start.layers
    reference = f"enginery/base:{layer.blob.digest.removeprefix('sha256:')[:12]}"
    engine.import_layer(store.verified(layer.blob), reference)
    return reference


def _keep(plan: _Plan, copy: dockerfile.Copy, layer: Path, store: Store) -> None:
    store.write_record(
        Record(
            key=plan.keys[copy],
            stage="runtime",
            subject=copy.source.replace("/", "-"),
            key_inputs={},
            outputs={"layer.tar": store.put(layer)},
            facts={},
            duration_s=0.0,
            peak_rss_bytes=0,
        )
    )


def _image(plan: _Plan, start: Base, store: Store) -> oci.Image:
    records = {copy: store.record(key) for copy, key in plan.keys.items()}
    added = [oci.Layer(what=c.source, blob=r.outputs["layer.tar"]) for c, r in records.items() if r is not None]
    title = {"org.opencontainers.image.title": f"enginery runtime: {plan.name}"}
    return oci.assemble([*start.layers, *added], plan.file.over(start.settings), title)
