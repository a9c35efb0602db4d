"""The clip task: pictures prepared as CLIPImageProcessor does, what is not read, and the task's files."""

from __future__ import annotations

import base64
import io
import subprocess
import sys
from typing import Any

import numpy as np
import pytest
from PIL import Image

from serving.tasks.clip import GoldenClip, dump_golden, load_golden
from serving.tasks.images import BadImage, parse_data_uri, preprocess

SIZE = 224
MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)  # CLIP's own


def picture(width: int, height: int, mode: str = "RGB", kind: str = "PNG", **options: Any) -> bytes:
    """Noise and shapes: sharp edges show every difference in resampling."""
    rng = np.random.default_rng(width * 10_000 + height)
    pixels = rng.integers(0, 256, (height, width, 3), dtype=np.uint8)
    pixels[height // 4 : height // 2, width // 4 : width // 2] = (255, 0, 0)
    image, out = Image.fromarray(pixels).convert(mode), io.BytesIO()
    image.save(out, kind, **options)
    return out.getvalue()


def prepared(data: bytes) -> np.ndarray:
    return preprocess(data, index=0, size=SIZE, mean=MEAN, std=STD)


@pytest.mark.parametrize(
    "data",
    [
        picture(224, 224),
        picture(640, 480),
        picture(100, 333),
        picture(333, 100),
        picture(225, 224),
        picture(1000, 37),
        picture(50, 50, "L"),
        picture(300, 200, "RGBA"),
        picture(300, 200, "P"),
        picture(300, 200, "CMYK", "JPEG"),
        picture(640, 481, kind="JPEG"),
        picture(301, 299, kind="WEBP"),
    ],
    ids=lambda data: f"{len(data)}-bytes",
)
def test_pixels_are_those_of_the_reference_processor(data: bytes) -> None:
    from transformers import CLIPImageProcessor

    image = Image.open(io.BytesIO(data))
    expected = CLIPImageProcessor()(image, return_tensors="np")["pixel_values"][0]
    found = prepared(data)
    assert found.shape == (3, SIZE, SIZE)
    assert found.dtype == np.float32
    scale = np.array(STD, np.float32)[:, None, None]
    assert np.abs((found - expected) * scale).max() <= 1 / 255


def bomb() -> bytes:
    """A PNG of 30 000 x 30 000 pixels by its header, and of a few bytes."""
    small = bytearray(picture(10, 10))
    small[16:24] = (30_000).to_bytes(4, "big") * 2
    return bytes(small)


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "neither PNG, JPEG nor WebP"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "neither PNG, JPEG nor WebP"),
        (b"GIF89a" + bytes(50), "neither PNG, JPEG nor WebP"),
        (b"RIFF" + bytes(40), "cannot be read"),
        (picture(64, 64)[:200], "damaged"),
        (picture(64, 64, kind="JPEG")[:300], "damaged"),
        (b"\x89PNG\r\n\x1a\n" + bytes(100), "cannot be read"),
        (bomb(), "30000 x 30000|damaged|far too many"),
        (picture(1, 1) + b"", None),
    ],
)
def test_what_is_no_picture_is_refused_with_its_place(data: bytes, words: str | None) -> None:
    if words is None:
        assert np.isfinite(prepared(data)).all()
        return
    with pytest.raises(BadImage, match=words) as caught:
        preprocess(data, index=7, size=SIZE, mean=MEAN, std=STD)
    assert caught.value.index == 7


def test_a_picture_of_too_many_pixels_is_refused_before_it_is_decoded() -> None:
    import zlib

    header = b"IHDR" + (8000).to_bytes(4, "big") * 2 + bytes([8, 2, 0, 0, 0])
    chunk = (13).to_bytes(4, "big") + header + zlib.crc32(header).to_bytes(4, "big")
    with pytest.raises(BadImage, match=r"8000 x 8000"):
        prepared(b"\x89PNG\r\n\x1a\n" + chunk + b"\0\0\0\0IDAT")


@pytest.mark.parametrize(
    ("uri", "words"),
    [
        ("data:text/html;base64,AAAA", "only data:image/png"),
        ("data:image/svg+xml;base64,AAAA", "only data:image/png"),
        ("data:image/png,AAAA", "only data:image/png"),
        ("data:image/png;base64,not base64!", "not base64"),
        ("data:", "never fetched"),
    ],
)
def test_a_data_uri_that_is_not_a_picture_says_what_is_read(uri: str, words: str) -> None:
    with pytest.raises(BadImage, match=words):
        parse_data_uri(uri)


def test_a_data_uri_gives_the_files_bytes() -> None:
    data = picture(5, 5)
    for kind in ("png", "jpeg", "jpg", "webp", "PNG"):
        assert parse_data_uri(f"data:image/{kind};base64,{base64.b64encode(data).decode()}") == data


def test_a_server_of_texts_does_not_import_pillow() -> None:
    code = "import sys, serving.prove, serving.api.app; sys.exit('PIL' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False, timeout=60).returncode == 0


def test_golden_outputs_are_read_as_they_were_written() -> None:
    rng = np.random.default_rng(0)
    golden = GoldenClip(
        texts=("a", "b"),
        text_vectors=rng.normal(size=(2, 4)).astype(np.float32),
        images=(picture(5, 5),),
        image_vectors=rng.normal(size=(1, 4)).astype(np.float32),
    )
    again = load_golden(dump_golden(golden))
    assert (again.texts, again.images) == (golden.texts, golden.images)
    assert np.array_equal(again.image_vectors, golden.image_vectors)
    with pytest.raises(ValueError, match="for 2 texts of dimension 5"):
        load_golden(dump_golden(golden).replace(b'"dimension":4', b'"dimension":5'))
