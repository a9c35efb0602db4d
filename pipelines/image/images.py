"""images.json: the images that were built of one manifest, and where they are."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Literal

import msgspec

from pipelines.errors import ImageError
from pipelines.store.files import write_atomically

FILE = "images.json"  # in dist/<model>
# What an image holds of its model: "full" has the engines, "slim" the manifest alone and fetches what it selects.
Kind = Literal["full", "slim"]


class ImageLayer(msgspec.Struct, frozen=True, kw_only=True):
    """One layer, and what it holds in a person's words."""

    what: str  # "lib/cpu", "engine: l40s__fp8__tp1"
    digest: str
    size_bytes: int


class ImageResult(msgspec.Struct, frozen=True, kw_only=True):
    """One image: an entry of the file."""

    reference: str  # "enginery/all-minilm-l6-v2:0.1.0-cpu"
    runtime: str  # "cpu"
    kind: Kind
    base: str  # what the runtime starts from, in words
    manifest_digest: str = msgspec.field(name="digest")  # what a registry names it by
    image_id: str  # what Docker names it by: the config's digest
    size_bytes: int
    layers: tuple[ImageLayer, ...]
    loaded: bool  # into Docker
    not_loaded_because: str | None


def load(folder: Path) -> tuple[ImageResult, ...]:
    """The images of dist/MODEL; none where none were built. Raises ImageError for a file that cannot be read."""
    path = folder / FILE
    try:
        return msgspec.json.decode(path.read_bytes(), type=tuple[ImageResult, ...])
    except FileNotFoundError:
        return ()
    except msgspec.DecodeError as error:
        raise ImageError(f"{path} is not readable ({error}); build the images again: enginery build") from None


def write(folder: Path, images: Iterable[ImageResult]) -> None:
    content = json.dumps(msgspec.to_builtins(tuple(images)), indent=1)
    write_atomically(folder / FILE, content.encode())


def describe(image: ImageResult) -> str:
    """An image's size by layer, for a person."""
    lines = [f"{image.reference}  {image.manifest_digest}  {image.size_bytes / 1e6:.0f} MB"]
    lines += [f"  {layer.size_bytes / 1e6:8.1f} MB  {layer.what}" for layer in image.layers]
    return "\n".join(lines)
