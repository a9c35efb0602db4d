"""Pictures prepared as transformers' CLIPImageProcessor does, and what is no picture refused before it is decoded."""

from __future__ import annotations

import base64
import io
import struct
import subprocess
import sys
import zlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from serving.tasks.images import MAX_PIXELS, BadImage, is_data_uri, parse_data_uri, preprocess

SIZE = 224
MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)  # OpenAI's, which all use
ROOT = Path(__file__).parents[3]


@pytest.fixture(scope="module")
def processor() -> Any:
    from transformers import CLIPImageProcessor  # takes seconds, and only some tests need it

    edge = {"height": SIZE, "width": SIZE}
    return CLIPImageProcessor(size={"shortest_edge": SIZE}, crop_size=edge, image_mean=MEAN, image_std=STD)


def pixels(data: bytes) -> NDArray[np.float32]:
    return preprocess(data, index=0, size=SIZE, mean=MEAN, std=STD)


def noise(width: int, height: int, seed: int = 0) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8))


def saved(image: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def png(width: int, height: int, raw: bytes, *, depth: int = 8, color: int = 0, extra: bytes = b"") -> bytes:
    """A PNG written by hand: it may lie."""
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, color, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + extra + chunk(b"IDAT", zlib.compress(raw)) + chunk(b"IEND", b"")


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def rotated() -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = 6
    return exif


def grey_of_16_bits() -> Image.Image:
    return Image.fromarray(np.random.default_rng(1).integers(0, 65536, (100, 130)).astype(np.uint16))


def colours_of_16_bits() -> bytes:
    row = b"\0" + np.random.default_rng(2).integers(0, 256, 40 * 6, dtype=np.uint8).tobytes()
    return png(40, 30, row * 30, depth=16, color=2)


KINDS: dict[str, Callable[[], bytes]] = {
    "PNG": lambda: saved(noise(300, 401)),
    "JPEG": lambda: saved(noise(401, 300), "JPEG"),
    "WebP": lambda: saved(noise(300, 300), "WEBP"),
    "of the very size": lambda: saved(noise(SIZE, SIZE)),
    "one pixel larger": lambda: saved(noise(SIZE + 1, SIZE)),
    "odd on both sides": lambda: saved(noise(333, 225)),
    "small": lambda: saved(noise(7, 5)),
    "tall and thin": lambda: saved(noise(30, 900)),
    "wide and flat": lambda: saved(noise(900, 30)),
    "CMYK": lambda: saved(noise(100, 130).convert("CMYK"), "JPEG"),
    "16-bit grey": lambda: saved(grey_of_16_bits()),
    "16-bit colour": colours_of_16_bits,
    "grey": lambda: saved(noise(100, 130).convert("L")),
    "black and white": lambda: saved(noise(100, 130).convert("1")),
    "grey with alpha": lambda: saved(noise(100, 130).convert("LA")),
    "alpha": lambda: saved(Image.fromarray(np.random.default_rng(3).integers(0, 256, (99, 70, 4), dtype=np.uint8))),
    "a palette": lambda: saved(noise(100, 130).quantize(16)),
    "a palette with alpha": lambda: saved(noise(100, 130).quantize(16), transparency=bytes(range(16))),
    "a palette with one colour transparent": lambda: saved(noise(100, 130).quantize(16), transparency=3),
    "turned by EXIF": lambda: saved(noise(100, 130), "JPEG", exif=rotated()),
    "animated PNG": lambda: saved(noise(100, 130), save_all=True, append_images=[noise(100, 130, 1)]),
    "animated WebP": lambda: saved(noise(100, 130), "WEBP", save_all=True, append_images=[noise(100, 130, 1)]),
    "two JPEGs in one": lambda: saved(noise(100, 130), "MPO", save_all=True, append_images=[noise(100, 130, 1)]),
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.filterwarnings("ignore:Palette images")
def test_pictures_are_prepared_as_the_reference_processor_does(kind: str, processor: Any) -> None:
    """Within 1/255 of a channel's range: the issue's bound. Found: 4e-5 of 1/255 at most, in float32's rounding."""
    data = KINDS[kind]()
    expected = processor(Image.open(io.BytesIO(data)), return_tensors="np")["pixel_values"][0]
    found = pixels(data)
    assert (found.shape, found.dtype, found.flags.c_contiguous) == ((3, SIZE, SIZE), np.float32, True)
    difference = np.abs(found - expected) * np.array(STD)[:, None, None]  # normalising divided by it
    assert difference.max() <= 0.001 / 255


def test_a_picture_keeps_its_orientation_and_only_its_first_frame() -> None:
    animated = saved(noise(9, 7), save_all=True, append_images=[noise(9, 7, 1)])
    assert np.array_equal(pixels(saved(noise(9, 7))), pixels(animated))
    assert not np.array_equal(pixels(saved(noise(9, 7))), pixels(saved(noise(9, 7, 1))))
    upright, turned = saved(noise(9, 7), "JPEG"), saved(noise(9, 7), "JPEG", exif=rotated())
    assert upright != turned
    assert np.array_equal(pixels(upright), pixels(turned))


BAD: dict[str, tuple[Callable[[], bytes], str]] = {
    "nothing": (lambda: b"", "neither PNG, JPEG nor WebP"),
    "SVG": (lambda: b"<svg xmlns='http://www.w3.org/2000/svg'/>", "neither PNG, JPEG nor WebP"),
    "GIF": (lambda: saved(noise(9, 9).quantize(4), "GIF"), "neither PNG, JPEG nor WebP"),
    "TIFF": (lambda: saved(noise(9, 9), "TIFF"), "neither PNG, JPEG nor WebP"),
    "a PNG cut off": (lambda: KINDS["PNG"]()[:5000], "cut off"),
    "a JPEG cut off": (lambda: KINDS["JPEG"]()[:5000], "cut off"),
    "a WebP cut off": (lambda: KINDS["WebP"]()[:5000], "cut off"),
    "a sound": (lambda: b"RIFF\x24\0\0\0WAVEfmt " + bytes(40), "cannot be read"),
    "a PNG whose data is shorter than it says": (lambda: png(50, 50, b"\0" * 10), "cut off"),
    "no width": (lambda: png(0, 5, b"\0"), "cannot be read|0 x 5"),
    "more pixels than are read": (
        lambda: png(8000, 4001, b"\0"),
        "8000 x 4001 pixels, at most 32000000 .* smaller",
    ),
    "a size that Pillow warns of": (lambda: png(12_000, 9000, b"\0"), "12000 x 9000 pixels, at most"),
    "a size that Pillow refuses": (lambda: png(60_000, 60_000, b"\0"), "far too large, at most"),
    "WebP of the largest size": (lambda: webp_header(16_383, 16_383), "far too large"),
    "a line of pixels": (lambda: png(1, MAX_PIXELS, b"\0"), "too long for its width"),
    "text that unpacks to 300 MB": (lambda: png(5, 5, bytes(30), extra=bomb(b"zTXt", b"a\0\0")), "damaged"),
    "a profile that unpacks to 300 MB": (lambda: png(5, 5, bytes(30), extra=bomb(b"iCCP", b"a\0\0")), "damaged"),
}


def bomb(kind: bytes, head: bytes) -> bytes:
    packer = zlib.compressobj()
    return chunk(kind, head + b"".join(packer.compress(bytes(1_000_000)) for _ in range(300)) + packer.flush())


def webp_header(width: int, height: int) -> bytes:
    size = (width - 1).to_bytes(3, "little") + (height - 1).to_bytes(3, "little")
    return b"RIFF" + struct.pack("<I", 22) + b"WEBPVP8X" + struct.pack("<I", 10) + b"\x02\0\0\0" + size


@pytest.mark.parametrize("what", BAD)
@pytest.mark.filterwarnings("ignore:Image size")
def test_what_is_no_picture_or_too_large_is_refused_with_its_reason(what: str) -> None:
    make, words = BAD[what]
    with pytest.raises(BadImage, match=words):
        pixels(make())


def test_what_is_refused_for_its_size_is_never_decoded() -> None:
    """Both hold every pixel that they declare, 32 million in some kB; decoded, one has 32 MiB at the least."""
    code = (
        "import sys\nfrom serving.tasks.images import BadImage, preprocess\n"
        "def peak(): return next(int(line.split()[1]) for line in open('/proc/self/status') if 'VmHWM' in line)\n"
        "def refuses(data):\n"
        "    try: preprocess(data, index=0, size=224, mean=(0, 0, 0), std=(1, 1, 1))\n"
        "    except BadImage: return 1\n"
        "first, *others = sys.stdin.buffer.read().split(b'|next|')\n"
        "refused, before = refuses(first), peak()  # of a small one: Pillow is loaded\n"
        "print(sum(map(refuses, others)), (peak() - before) // 1024)"
    )
    large = [png(width, height, bytes((width + 1) * height)) for width, height in ((1, MAX_PIXELS), (8000, 4001))]
    given = b"|next|".join([png(0, 5, b"\0"), *large])
    command = [sys.executable, "-c", code]
    ran = subprocess.run(command, input=given, cwd=ROOT, check=True, capture_output=True, timeout=120)
    refused, grown_mib = map(int, ran.stdout.split())
    assert refused == 2
    assert grown_mib < 16


def test_pictures_that_pillow_warns_of_leave_no_line_on_stderr() -> None:
    """The log is JSON. Of a palette with alpha Pillow warns, and of 108 megapixels."""
    code = (
        "import sys\nfrom serving.tasks.images import BadImage, preprocess\n"
        "for data in sys.stdin.buffer.read().split(b'|next|'):\n"
        "    try: preprocess(data, index=0, size=8, mean=(0, 0, 0), std=(1, 1, 1)); print('read')\n"
        "    except BadImage as error: print('refused')"
    )
    given = KINDS["a palette with alpha"]() + b"|next|" + png(12_000, 9000, b"\0")
    command = [sys.executable, "-c", code]
    ran = subprocess.run(command, input=given, cwd=ROOT, check=True, capture_output=True, timeout=60)
    assert ran.stdout.split() == [b"read", b"refused"]
    assert ran.stderr == b""


def test_threads_that_read_pictures_together_each_get_their_own() -> None:
    files = [saved(noise(40 + n, 50, n)) for n in range(8)]
    expected = [pixels(data) for data in files]
    with ThreadPoolExecutor(4) as pool:
        for n, found in enumerate(pool.map(pixels, files * 5)):
            assert np.array_equal(found, expected[n % 8])


def test_pillow_is_not_imported_before_a_picture_comes() -> None:
    code = (
        "import sys\nfrom serving import backends\nfrom serving.batching import encoders\n"
        "from serving.start import prove\n"
        "from serving.tasks import table, images\n"
        "try: images.preprocess(b'x', index=0, size=8, mean=(0, 0, 0), std=(1, 1, 1))\n"
        "except images.BadImage: pass\n"
        "sys.exit('PIL' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False, timeout=60).returncode == 0


@pytest.mark.parametrize("kind", ["png", "jpeg", "jpg", "webp", "PNG"])
def test_a_data_uri_is_the_files_bytes(kind: str) -> None:
    data = bytes(range(256))
    assert parse_data_uri(f"data:image/{kind};base64,{base64.b64encode(data).decode()}") == data


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("data:image/svg+xml;base64,PHN2Zy8+", "only data:image/png;base64"),
        ("data:image/gif;base64,R0lG", "only data:image/png;base64"),
        ("data:text/html;base64,PGI+", "only data:image/png;base64"),
        ("data:image/png,raw", "only data:image/png;base64"),
        ("data:", "only data:image/png;base64"),
        ("data:image/png;base64,%%%", "not base64"),
        ("data:image/png;base64,AAA", "not base64"),
        ("data:image/png;base64,AA\nAA", "not base64"),
        ("data:image/png;base64,ÄÖÜ=", "not base64"),
    ],
)
def test_what_is_no_picture_in_base64_is_refused_with_the_remedy(text: str, words: str) -> None:
    assert is_data_uri(text)
    with pytest.raises(BadImage, match=words):
        parse_data_uri(text)


@pytest.mark.parametrize("text", ["a photo of data: none", "http://127.0.0.1/a.png", "", "datum:"])
def test_other_texts_are_texts(text: str) -> None:
    assert not is_data_uri(text)
