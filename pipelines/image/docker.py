"""Talk to a Docker engine: the only module that imports its SDK."""

from __future__ import annotations

import json
import tarfile
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import IO, Any

from pipelines.errors import ImageError
from pipelines.image import oci
from pipelines.store.store import Store


class EngineUnreachable(ImageError):
    """No Docker engine answers; everything that needs none still works."""


def connect(timeout_s: float = 600) -> Engine:
    """The engine that the environment names (DOCKER_HOST) or the local one; raises EngineUnreachable."""
    try:
        import docker

        client = docker.from_env(timeout=timeout_s)
        client.ping()
    except Exception as error:  # the SDK lets errors of several libraries through here
        raise EngineUnreachable(
            f"no Docker engine can be reached ({error}); start one, or set DOCKER_HOST to one"
        ) from error
    return Engine(client)


class Engine:
    """One engine, and the few things that images need of it."""

    def __init__(self, client: Any) -> None:
        self._client = client

    def id_of(self, reference: str) -> str | None:
        """The image's id ("sha256:…": its config's digest), or None if the engine does not have it."""
        from docker.errors import ImageNotFound

        try:
            return str(self._client.images.get(reference).id)
        except ImageNotFound:
            return None

    def pull(self, reference: str) -> None:
        """Pull an image; raises ImageError with the engine's own words."""
        from docker.errors import APIError
        from requests.exceptions import RequestException

        name, _, tag = reference.partition("@")[0].rpartition(":")
        repository, tag = (name, tag) if name and "/" not in tag else (reference.partition("@")[0], "latest")
        tag = reference.partition("@")[2] or tag
        try:
            for event in self._client.api.pull(repository, tag=tag, stream=True, decode=True):
                if "error" in event:
                    raise ImageError(f"{reference} could not be pulled: {event['error']}")
        except (APIError, RequestException) as error:
            said = getattr(error, "explanation", None) or error
            raise ImageError(f"{reference} could not be pulled: {said}") from error

    def import_layer(self, layer: Path, reference: str) -> None:
        """Make an image of one layer, for a Dockerfile to start from."""
        if self.id_of(reference) is None:
            name, _, tag = reference.rpartition(":")
            with layer.open("rb") as file:
                answer = self._client.api.import_image_from_data(file, repository=name, tag=tag)
            if '"error"' in str(answer):
                raise ImageError(f"the engine refused the base {layer.name}: {answer}")

    def build(self, context: Iterable[oci.Entry], base: str, scratch: Path, *, use_cache: bool = True) -> str:
        """Build the Dockerfile of a context on a base image; the new image's id. `scratch` holds the context."""
        from docker.errors import APIError

        oci.write_layer(context, scratch)
        said: list[str] = []
        built: str | None = None
        try:
            with scratch.open("rb") as file:
                events = self._client.api.build(
                    fileobj=file,
                    custom_context=True,
                    buildargs={"BASE": base},
                    nocache=not use_cache,
                    rm=True,
                    forcerm=True,
                    decode=True,
                )
                for event in events:
                    said.append(str(event.get("stream") or event.get("error") or "").rstrip())
                    built = event.get("aux", {}).get("ID", built)
                    if "error" in event:
                        raise ImageError("the engine's build failed:\n" + "\n".join(filter(None, said[-12:])))
        except APIError as error:
            raise ImageError(f"the engine refused the build: {error.explanation or error}") from error
        if built is None:
            raise ImageError("the engine named no image after the build:\n" + "\n".join(filter(None, said[-12:])))
        return built

    def settings_of(self, reference: str) -> tuple[dict[str, Any], int]:
        """The `config` part of an image, and its number of layers."""
        attributes = self._client.images.get(reference).attrs
        return dict(attributes.get("Config") or {}), len(attributes["RootFS"]["Layers"])

    def save_layers(self, reference: str, scratch: Path) -> Iterator[IO[bytes]]:
        """The layers of an image, lowest first, each as a tar file to read before the next."""
        with scratch.open("wb") as file:
            for chunk in self._client.api.get_image(reference, chunk_size=1 << 20):
                file.write(chunk)
        with tarfile.open(scratch) as archive:
            for name in _archived_layers(archive):
                layer = archive.extractfile(name)  # follows the links by which engines name a layer twice
                if layer is None:
                    raise ImageError(f"{reference}: the engine's archive names the layer {name} and does not hold it")
                with layer:
                    yield layer

    def load(self, images: Mapping[str, oci.Image], store: Store) -> None:
        """Load images under their references. Layers that the engine has are not sent again where it allows that."""
        from docker.errors import APIError, ImageLoadError

        missing = {r: i for r, i in images.items() if self.id_of(r) != oci.blob_of(i.config).digest}
        for reference, image in list(missing.items()):
            if self.id_of(oci.blob_of(image.config).digest) is not None:
                self._tag(oci.blob_of(image.config).digest, reference)
                del missing[reference]
        for reference, image in missing.items():
            for left_out in dict.fromkeys((self._held(image), frozenset[str]())):
                try:
                    self._client.images.load(oci.docker_archive({reference: image}, store, left_out))
                except (APIError, ImageLoadError) as error:
                    if not left_out:  # an engine with another image store wants all layers: the second round sends them
                        raise ImageError(f"the engine refused {reference}: {error}") from error
                else:
                    break

    def remove(self, reference: str) -> None:
        """Remove a reference, and the image if nothing else names it."""
        from docker.errors import APIError

        try:
            self._client.images.remove(reference, noprune=False)
        except APIError:  # in use, or gone already: a leftover, no failure
            return

    def _tag(self, image_id: str, reference: str) -> None:
        name, _, tag = reference.rpartition(":")
        self._client.images.get(image_id).tag(name, tag=tag)

    def _held(self, image: oci.Image) -> frozenset[str]:
        """The layers at the bottom of an image that some image of the engine is built on too."""
        digests = [layer.blob.digest for layer in image.layers]
        longest = 0
        for summary in self._client.api.images(all=True, quiet=True):
            held = self._client.api.inspect_image(summary)["RootFS"].get("Layers") or []
            common = next((i for i, (a, b) in enumerate(zip(digests, held, strict=False)) if a != b), None)
            longest = max(longest, min(len(digests), len(held)) if common is None else common)
        # A layer that stands both below and above that line must still be sent.
        return frozenset(digests[:longest]) - frozenset(digests[longest:])


def _archived_layers(archive: tarfile.TarFile) -> list[str]:
    index = archive.extractfile("manifest.json")
    if index is None:
        raise ImageError("the engine's archive has no manifest.json")
    (image,) = json.load(index)
    return list(image["Layers"])
