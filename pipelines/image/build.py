"""A packaged model on a runtime base -> an OCI image by digest, in a layout and in Docker."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

from pipelines.errors import ImageContextOnly, ImageError
from pipelines.image import dockerfile, images, oci, package, runtime
from pipelines.image.docker import DockerClient, DockerUnreachable, connect
from pipelines.image.images import ImageLayer, ImageResult, Kind
from pipelines.image.runtime import Runtime
from pipelines.matrix.values import RowName
from pipelines.store.files import file_digest, key_of, write_atomically
from pipelines.store.store import Record, Store
from serving.contract import manifest
from serving.contract.manifest import Manifest
from serving.contract.profile import Profile, ProfileFile

# runtime -> (what its image's tag ends in, the backends it can execute)
RUNTIMES: Mapping[str, tuple[str, frozenset[str]]] = {
    "cpu": ("-cpu", frozenset({"onnxruntime", "openvino"})),
    "rtx": ("", frozenset({"onnxruntime", "openvino", "tensorrt-rtx"})),
    "cuda": ("-cuda", frozenset({"onnxruntime", "openvino", "tensorrt"})),
}
MANIFEST_LAYER = "manifest"
KIND_LABEL = "enginery.image.kind"
REPOSITORY = (
    "ENGINERY_REPOSITORY"  # the variable by which a slim image knows where its files are (serving.settings.settings)
)
ROOT = "opt/nim"
LAYOUT = "oci"  # the folder in dist/<model> that holds the image layout
CONTEXT = "context"  # the folder that holds what `docker build` needs, where no image can be made
# Engines have a layer each, so that releases and models share those that did not change; Docker's overlay takes 128.
MAX_ENGINE_LAYERS = 96


def build_images(
    folder: Path,
    runtimes: Sequence[str],
    *,
    store: Store,
    base: str | Path | None = None,
    containers: Path = runtime.CONTAINERS,
    docker: bool = True,
    kinds: Sequence[Kind] = ("full",),
    repository: str | None = None,
) -> tuple[ImageResult, ...]:
    """Build the images of a packaged model (dist/<model>), by runtime: into its `oci` folder and Docker.

    images.json lists them beside the manifest. A runtime that can execute no profile has no image (without_profile).
    docker=False leaves Docker alone. repository: where slim images look for files unless NIM_REPOSITORY_OVERRIDE
    says otherwise ("s3://bucket/models", "oci://host/model:0.1.0"). Raises ImageError if no image can be made; the
    folder then has the complete context for `docker build` elsewhere.
    """
    shipped = manifest.read(folder / package.ROOT / package.MANIFEST)
    client, unreachable = _connected(docker)
    offers = {name: offer(shipped, name) for name in runtimes}
    possible = [name for name in runtimes if name not in without_profile(shipped, runtimes)]
    if not possible:
        raise ImageError(f"{shipped.model} has no profile that the runtimes {', '.join(runtimes)} can execute")
    try:
        bases = runtime.prepare(possible, store=store, docker=client, base=base, containers=containers)
    except ImageError as error:
        (folder / images.FILE).unlink(missing_ok=True)  # of an earlier build: it is not of this manifest
        written = write_context(folder, possible, containers=containers, store=store)
        raise ImageContextOnly(
            f"{error}\nthe complete image context is in {written}: where a Docker engine and a base are, run\n"
            f"  docker build --build-arg BASE=IMAGE --file {written}/{possible[0]}.Dockerfile {written}"
        ) from error
    wanted = [(name, kind) for name in possible for kind in dict.fromkeys(kinds)]
    assembled = {
        reference_of(shipped, name, kind): _image(folder, offers[name], bases[name], store, kind, repository)
        for name, kind in wanted
    }
    oci.write_layout(folder / LAYOUT, assembled, store)
    if client is not None:
        client.load(assembled, store)
    results = tuple(
        ImageResult(
            reference=reference,
            runtime=name,
            kind=kind,
            base=bases[name].base,
            manifest_digest=oci.blob_of(image.manifest).digest,
            image_id=oci.blob_of(image.config).digest,
            size_bytes=image.size_bytes,
            layers=tuple(
                ImageLayer(what=layer.what, digest=layer.blob.digest, size_bytes=layer.blob.size_bytes)
                for layer in image.layers
            ),
            loaded=unreachable is None,
            not_loaded_because=unreachable,
        )
        for (name, kind), (reference, image) in zip(wanted, assembled.items(), strict=True)
    )
    images.write(folder, results)
    return results


def without_profile(shipped: Manifest, runtimes: Sequence[str]) -> list[str]:
    """The runtimes that can execute none of these profiles."""
    return [name for name in runtimes if not offer(shipped, name).profiles]


def reference_of(shipped: Manifest, name: str, kind: Kind) -> str:
    """An image's name: "enginery/all-minilm-l6-v2:0.1.0-cpu-slim"."""
    return f"enginery/{shipped.model}:{shipped.release}{RUNTIMES[name][0]}{'-slim' if kind == 'slim' else ''}"


def _connected(wanted: bool) -> tuple[DockerClient | None, str | None]:
    """Docker's client, or why there is none."""
    if not wanted:
        return None, "Docker was not asked for"
    try:
        return connect(), None
    except DockerUnreachable as error:
        return None, str(error)


def offer(shipped: Manifest, name: str) -> Manifest:
    """The profiles of a manifest that a runtime's image can execute."""
    if name not in RUNTIMES:
        raise ImageError(f"there is no runtime {name!r}; the runtimes are {', '.join(RUNTIMES)}")
    return replace(shipped, profiles=tuple(p for p in shipped.profiles if p.backend in RUNTIMES[name][1]))


def _image(
    folder: Path, offered: Manifest, base: Runtime, store: Store, kind: Kind, repository: str | None
) -> oci.Image:
    files = _file_layers(folder / package.ROOT, offered, store) if kind == "full" else []
    layers = [*base.image.layers, *files, _manifest_layer(offered, store)]
    settings = dict(base.image.settings)
    if kind == "slim" and repository is not None:
        settings["Env"] = [*settings.get("Env", []), f"{REPOSITORY}={repository}"]
    labels = {
        **base.image.settings.get("Labels", {}),
        "org.opencontainers.image.title": offered.model,
        "org.opencontainers.image.version": offered.release,
        "org.opencontainers.image.description": f"Serves {offered.model} with {len(offered.profiles)} judged engines",
        "org.opencontainers.image.base.name": f"enginery-runtime-{base.name}",
        "org.opencontainers.image.base.digest": base.digest,
        KIND_LABEL: kind,
    }
    annotations = {k: v for k, v in labels.items() if k.startswith("org.opencontainers.")}
    return oci.assemble(layers, {**settings, "Labels": labels}, annotations)


def _file_layers(root: Path, offered: Manifest, store: Store) -> list[oci.Layer]:
    """Shared files first, then each engine in its own layer, by digest."""
    engines = {f.checksum: f for profile in offered.profiles for f in profile.files if _is_engine(f)}
    others = {f.checksum: f for profile in offered.profiles for f in profile.files if not _is_engine(f)}
    users: dict[str, list[Profile]] = {}
    for profile in offered.profiles:
        for file in filter(_is_engine, profile.files):
            users.setdefault(file.checksum, []).append(profile)
    layers = [_layer("tokenizer, task, proof", list(others.values()), root, store)]
    ordered = [engines[checksum] for checksum in sorted(engines)]
    each = -(-len(ordered) // MAX_ENGINE_LAYERS)
    for first in range(0, len(ordered), each):
        group = ordered[first : first + each]
        names = [_cell(profile.name) for file in group for profile in users[file.checksum]]
        layers.append(_layer(f"engine: {', '.join(sorted(names))}", group, root, store))
    return layers


def _cell(row: str) -> str:
    name = RowName.parse(row)
    return row if name is None else name.cell


def _manifest_layer(offered: Manifest, store: Store) -> oci.Layer:
    """The uppermost layer, since it changes most; the same in a slim image and a full one."""
    with store.workspace() as scratch:
        _write_manifest_layer(offered, scratch / "layer")
        return oci.Layer(what=MANIFEST_LAYER, blob=store.put(scratch / "layer"))


def _write_manifest_layer(offered: Manifest, target: Path) -> None:
    oci.write_layer([oci.Entry(name=f"{ROOT}/{package.MANIFEST}", source=manifest.dump(offered))], target)


def is_of(image: ImageResult, shipped: Manifest) -> bool:
    """Whether an image was built of this very manifest: whether its layer with the manifest is the one to be built."""
    with TemporaryDirectory() as scratch:
        _write_manifest_layer(offer(shipped, image.runtime), Path(scratch, "layer"))
        wanted = file_digest(Path(scratch, "layer"))
    return wanted in (layer.digest for layer in image.layers if layer.what == MANIFEST_LAYER)


def _is_engine(file: ProfileFile) -> bool:
    return file.path not in package.SHARED


def _layer(what: str, files: Sequence[ProfileFile], root: Path, store: Store) -> oci.Layer:
    """A layer of blobs. Their digests are its key: bytes that were put into a layer before are not read again."""
    names = sorted(f"{ROOT}/{file.uri}" for file in files)
    key = key_of({"format": oci.FORMAT, "blobs": names})
    record = store.record(key)
    if record is None:
        for file in files:
            if not package.holds(root / file.uri, file.checksum.removeprefix("blake3:")):
                raise ImageError(f"{root / file.uri} is missing or damaged; remove it and run the build again")
        with store.workspace() as scratch:
            oci.write_layer([oci.Entry(name=f"{ROOT}/{f.uri}", source=root / f.uri) for f in files], scratch / "layer")
            record = Record(
                key=key,
                stage="image-layer",
                subject=key[:16],
                key_inputs={},
                outputs={"layer.tar": store.put(scratch / "layer")},
                facts={},
                duration_s=0.0,
                peak_rss_bytes=0,
            )
        store.write_record(record)
    return oci.Layer(what=what, blob=record.outputs["layer.tar"])


def write_context(folder: Path, names: Sequence[str], *, containers: Path, store: Store) -> Path:
    """Write what `docker build` needs elsewhere: the runtimes' folders, the model's files, a Dockerfile per image."""
    context = folder / CONTEXT
    shutil.rmtree(context, ignore_errors=True)
    shipped = manifest.read(folder / package.ROOT / package.MANIFEST)
    for name in names:
        file = dockerfile.read(containers / name / "Dockerfile")
        runtime.fill_context(context, file.copies, containers, store)
        offered = offer(shipped, name)
        root = context / "model" / name / ROOT
        for wanted in {f.uri: f for profile in offered.profiles for f in profile.files}.values():
            if not (root / wanted.uri).exists():
                oci.link(folder / package.ROOT / wanted.uri, root / wanted.uri)
        write_atomically(root / package.MANIFEST, manifest.dump(offered))
        text = (containers / name / "Dockerfile").read_text()
        write_atomically(context / f"{name}.Dockerfile", f"{text}COPY model/{name}/ /\n".encode())
    return context
