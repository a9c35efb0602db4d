"""Read pictures that strangers send, and prepare them as CLIPImageProcessor does. Limits come before decoding."""

from __future__ import annotations

import base64
import binascii
import functools
import io
import re
import warnings
from typing import Any

import numpy as np
from numpy.typing import NDArray

FORMATS = {"PNG": b"\x89PNG\r\n\x1a\n", "JPEG": b"\xff\xd8\xff", "WEBP": b"RIFF"}
MAX_PIXELS = 32_000_000  # width x height as the file declares them
_DATA_URI = re.compile(r"data:image/(?:png|jpe?g|webp);base64,", re.IGNORECASE)


class BadImage(ValueError):
    """A picture that cannot be read, with its place among those of the request."""

    def __init__(self, why: str, index: int = 0) -> None:
        self.why, self.index = why, index
        super().__init__(f"picture {index}: {why}")


def is_data_uri(text: str) -> bool:
    return text[:5].lower() == "data:"


def parse_data_uri(text: str) -> bytes:
    """ "data:image/png;base64,…" -> the file's bytes. Raises BadImage."""
    match = _DATA_URI.match(text[:40])
    if match is None:
        raise BadImage("only data:image/png;base64,… (or jpeg, webp) is read; addresses are never fetched")
    try:
        return base64.b64decode(text[match.end() :], validate=True)
    except (binascii.Error, ValueError) as error:
        raise BadImage(f"its data is not base64: {error}") from error


def preprocess(
    data: bytes, *, index: int, size: int, mean: tuple[float, float, float], std: tuple[float, float, float]
) -> NDArray[np.float32]:
    """A file -> (3, size, size): RGB, shortest edge to size (bicubic), centre crop, 1/255, mean and std."""
    try:
        pixels = _pixels(data, size)
    except BadImage as error:
        raise BadImage(error.why, index) from error
    scaled = pixels.astype(np.float32) * np.float32(1 / 255)
    normal = (scaled - np.array(mean, np.float32)) / np.array(std, np.float32)
    return np.ascontiguousarray(normal.transpose(2, 0, 1), dtype=np.float32)


def _pixels(data: bytes, size: int) -> NDArray[np.uint8]:
    """(size, size, 3)."""
    if not data.startswith(tuple(FORMATS.values())):
        raise BadImage("it is neither PNG, JPEG nor WebP")
    pillow = _pillow()
    try:
        with pillow.open(io.BytesIO(data), formats=list(FORMATS)) as image:  # reads the header, no pixel
            width, height = image.size
            if width * height > MAX_PIXELS:
                raise BadImage(f"it has {width} x {height} pixels, at most {MAX_PIXELS} are read; make it smaller")
            scaled = _scaled(width, height, size)
            resized = image.convert("RGB").resize(scaled, resample=pillow.Resampling.BICUBIC)
    except (BadImage, MemoryError):
        raise
    except pillow.DecompressionBombError as error:  # Pillow's own limit, above this one
        raise BadImage(f"it is far too large, at most {MAX_PIXELS} pixels are read; make it smaller") from error
    except OSError as error:  # UnidentifiedImageError too
        raise BadImage("it cannot be read as PNG, JPEG or WebP: damaged, cut off, or another format") from error
    except Exception as error:  # Pillow's decoders raise whatever they like on damaged files
        raise BadImage(f"it is damaged: {type(error).__name__}") from error
    left, top = (scaled[0] - size) // 2, (scaled[1] - size) // 2
    return np.asarray(resized, dtype=np.uint8)[top : top + size, left : left + size]


def _scaled(width: int, height: int, size: int) -> tuple[int, int]:
    """The shortest edge to size, by CLIPImageProcessor's arithmetic. Raises BadImage for a picture like a thread."""
    short, long = sorted((width, height))
    if short < 1:
        raise BadImage(f"it has {width} x {height} pixels")
    scaled = int(size * long / short)
    if scaled * size > MAX_PIXELS:
        raise BadImage(f"it has {width} x {height} pixels: too long for its width; cut it")
    return (size, scaled) if width <= height else (scaled, size)


@functools.cache
def _pillow() -> Any:
    """PIL.Image, imported when the first picture comes.

    It warns of large pictures and of palettes, on stderr and between the lines of a log that is JSON: sizes are
    checked here, and palettes are read as CLIPImageProcessor reads them. Filters belong to the whole process, so
    they are not changed for each picture: pictures are read in several threads.
    """
    from PIL import Image

    warnings.filterwarnings("ignore", module=r"PIL\.")
    return Image
