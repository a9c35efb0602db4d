"""Talk to Docker: the only module that imports its SDK."""

from __future__ import annotations

import json
import tarfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO, Any

from pipelines.errors import ImageError
from pipelines.image import oci
from pipelines.store.store import Store


class DockerUnreachable(ImageError):
    """No Docker engine answers; everything that needs none still works."""


def connect(timeout_s: float = 600) -> DockerClient:
    """The daemon that the environment names (DOCKER_HOST) or the local one; raises DockerUnreachable."""
    try:
        import docker

        client = docker.from_env(timeout=timeout_s)
        client.ping()
    except Exception as error:  # the SDK lets errors of several libraries through here
        raise DockerUnreachable(
            f"no Docker engine can be reached ({error}); start one, or set DOCKER_HOST to one"
        ) from error
    return DockerClient(client)


class DockerClient:
    """One Docker daemon, and the few things that images need of it."""

    def __init__(self, client: Any) -> None:
        self._client = client

    def id_of(self, reference: str) -> str | None:
        """The image's id ("sha256:…": its config's digest), or None if Docker does not have it."""
        from docker.errors import ImageNotFound

        try:
            return str(self._client.images.get(reference).id)
        except ImageNotFound:
            return None

    def pull(self, reference: str) -> None:
        """Pull an image; raises ImageError with Docker's own words."""
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
            reason = getattr(error, "explanation", None) or error
            raise ImageError(f"{reference} could not be pulled: {reason}") from error

    def settings_of(self, reference: str) -> dict[str, Any]:
        """The `config` part of an image."""
        return dict(self._client.images.get(reference).attrs.get("Config") or {})

    def save_layers(self, reference: str, scratch: Path) -> Iterator[IO[bytes]]:
        """The layers of an image, lowest first, each as a tar file to read before the next."""
        with scratch.open("wb") as file:
            for chunk in self._client.api.get_image(reference, chunk_size=1 << 20):
                file.write(chunk)
        with tarfile.open(scratch) as archive:
            for name in _archived_layers(archive):
                layer = archive.extractfile(name)  # follows the links by which Docker names a layer twice
                if layer is None:
                    raise ImageError(f"{reference}: Docker's archive names the layer {name} and does not hold it")
                with layer:
                    yield layer

    def load(self, images: Mapping[str, oci.Image], store: Store) -> None:
        """Load images under their references. Layers that Docker has are not sent again where it allows that."""
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
                    if not left_out:  # a daemon with another image store wants all layers: the second round sends them
                        raise ImageError(f"Docker refused {reference}: {error}") from error
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
        """The layers at the bottom of an image that some image of this daemon is built on too."""
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
        raise ImageError("Docker's archive has no manifest.json")
    (image,) = json.load(index)
    return list(image["Layers"])
