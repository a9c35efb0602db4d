"""/v1/embeddings of a model that reads and sees: texts and pictures in one request, and every picture that is none."""

from __future__ import annotations

import base64
import io
import zlib
from collections.abc import AsyncIterator, Callable
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from serving.api.routes.clip import MAX_IMAGES
from serving.api.state import Limits
from serving.backends.base import Inputs
from serving.start.prove import rows
from serving.tasks import clip
from tests.support.api import Server, serving
from tests.support.tiny_models import DIMENSION, Model, picture, see_and_read


@pytest.fixture(scope="module")
def model() -> Model:
    return see_and_read()


@pytest.fixture
async def server(model: Model) -> AsyncIterator[Server]:
    async with serving(model, limits=Limits(max_inputs=200), queue=1000) as server:
        yield server


def uri(data: bytes, kind: str = "png") -> str:
    return f"data:image/{kind};base64,{base64.b64encode(data).decode()}"


def reference(model: Model, entry: str | bytes) -> NDArray[np.float32]:
    assert isinstance(model.spec, clip.ClipSpec)
    encoder, (text, image) = clip.Encoder(model.tokenizer, model.spec), model.spec.towers
    if isinstance(entry, str):
        return rows(model.backend(clip.TEXT).infer, text, encoder.encode_texts([entry]))[0]
    return rows(model.backend(clip.IMAGE).infer, image, encoder.encode_images([entry]))[0]


async def test_texts_and_pictures_mixed_keep_their_order(server: Server, model: Model) -> None:
    entries: list[str | bytes] = []
    for n in range(15):
        entries += [picture(n), f"w{n} w{n + 1}"] if n % 3 else [f"w{n}"]
    sent = [entry if isinstance(entry, str) else uri(entry) for entry in entries]
    response = await server.embed(input=sent, encoding_format="float")
    body = response.json()
    assert response.status_code == 200
    expected = np.array([reference(model, entry) for entry in entries])
    assert np.allclose([item["embedding"] for item in body["data"]], expected, atol=1e-5)
    assert [item["index"] for item in body["data"]] == list(range(len(entries)))
    num_tokens = sum(len(entry.split()) + 2 for entry in entries if isinstance(entry, str))
    assert body["usage"] == {
        "num_images": 10,
        "prompt_tokens": num_tokens,
        "completion_tokens": 0,
        "total_tokens": num_tokens,
    }


@pytest.mark.parametrize(("kind", "name"), [("JPEG", "jpeg"), ("JPEG", "jpg"), ("WEBP", "webp"), ("PNG", "PNG")])
async def test_jpeg_webp_and_png_are_read(server: Server, model: Model, kind: str, name: str) -> None:
    data = picture(1, (20, 30), kind)
    body = (await server.embed(input=uri(data, name))).json()
    assert np.allclose(body["data"][0]["embedding"], reference(model, data), atol=1e-5)


async def test_only_pictures_or_only_texts_need_one_engine(server: Server) -> None:
    assert (await server.embed(input=[uri(picture(1))])).json()["usage"]["prompt_tokens"] == 0
    assert (await server.embed(input=["w1"], modality="text")).json()["usage"]["num_images"] == 0
    both = await server.embed(input=["w1", uri(picture(1))], modality=["text", "image"])
    assert both.status_code == 200
    for tower in ("text", "image"):
        await server.tells(f'batch_size_count{{tower="{tower}"}} 2.0')


async def test_base64_and_bits_are_given_of_pictures_too(server: Server, model: Model) -> None:
    body = (await server.embed(input=uri(picture(1)), encoding_format="base64")).json()
    vector = np.frombuffer(base64.b64decode(body["data"][0]["embedding"]), "<f4")
    assert np.allclose(vector, reference(model, picture(1)), atol=1e-5)
    bits = (await server.embed(input=uri(picture(1)), embedding_type="ubinary")).json()["data"][0]["embedding"]
    assert np.array_equal(np.unpackbits(np.array(bits, np.uint8)), vector > 0)


def header(width: int, height: int) -> bytes:
    """A PNG that declares a size and holds almost nothing."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return len(data).to_bytes(4) + kind + data + zlib.crc32(kind + data).to_bytes(4)

    size = width.to_bytes(4) + height.to_bytes(4) + bytes([1, 0, 0, 0, 0])
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", size) + chunk(b"IDAT", zlib.compress(b"\0")) + chunk(b"IEND", b"")


def saved(kind: str, **options: Any) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (10, 10)).save(file, kind, **options)
    return file.getvalue()


def bomb() -> bytes:
    file = io.BytesIO()
    Image.new("1", (9400, 9400)).save(file, "PNG")
    return file.getvalue()


BAD: list[tuple[str, Callable[[], str], str]] = [
    ("a bomb of 88 megapixels in 11 kB", lambda: uri(bomb()), "at most 32000000 are read"),
    ("a header of 10^18 pixels", lambda: uri(header(10**9, 10**9)), "large|damaged"),
    ("a picture of no width", lambda: uri(header(0, 5)), ""),
    ("a truncated PNG", lambda: uri(picture(1, (50, 50))[:200]), ""),
    ("a truncated JPEG", lambda: uri(picture(1, (50, 50), "JPEG")[:300], "jpeg"), ""),
    ("nothing", lambda: uri(b""), "neither PNG, JPEG nor WebP"),
    ("a text", lambda: uri(b"hello"), "neither PNG, JPEG nor WebP"),
    ("SVG", lambda: uri(b"<svg xmlns='http://www.w3.org/2000/svg'/>"), "neither PNG, JPEG nor WebP"),
    ("SVG's own type", lambda: "data:image/svg+xml;base64,PHN2Zy8+", "only data:image/png;base64"),
    ("GIF", lambda: uri(saved("GIF")), "neither PNG, JPEG nor WebP"),
    ("TIFF", lambda: uri(saved("TIFF")), "neither PNG, JPEG nor WebP"),
    ("BMP", lambda: uri(saved("BMP")), "neither PNG, JPEG nor WebP"),
    ("RIFF that is sound", lambda: uri(b"RIFF\x24\0\0\0WAVEfmt "), ""),
    ("half a magic", lambda: uri(b"\x89PNG"), "neither PNG, JPEG nor WebP"),
    ("HTML", lambda: "data:text/html;base64,PGI+", "only data:image/png;base64"),
    ("no base64", lambda: "data:image/png,abc", "only data:image/png;base64"),
    ("bad base64", lambda: "data:image/png;base64,@@@@", "not base64"),
    ("base64 without its padding", lambda: uri(picture(1)) + "A", "not base64"),
    ("letters of other scripts", lambda: "data:image/png;base64,ááá", "not base64"),
    ("a strip of 1 x 8 000 000", lambda: uri(header(1, 8_000_000)), ""),
]


@pytest.mark.parametrize(("make", "words"), [case[1:] for case in BAD], ids=[case[0] for case in BAD])
async def test_what_is_no_picture_is_the_clients_error_and_named(
    server: Server, make: Callable[[], str], words: str
) -> None:
    response = await server.embed(input=["w1", uri(picture(1)), make()])
    answer = response.json()
    assert response.status_code == 400
    assert answer["type"] == "request_validation_error"
    assert answer["detail"]["loc"] == ["body", "input", 2]
    assert any(word in answer["message"] for word in words.split("|"))
    assert "input 2" in answer["message"]


@pytest.mark.parametrize("text", ["http://127.0.0.1/x.png", "file:///etc/passwd", "https://example.com/a.png"])
async def test_an_address_is_a_text_and_is_never_fetched(server: Server, text: str) -> None:
    body = (await server.embed(input=text)).json()
    assert body["usage"]["num_images"] == 0


async def test_pictures_of_other_kinds_inside_a_format_are_read(server: Server) -> None:
    """CMYK, 16 bits, a palette, transparency, two frames: real cameras and programs write them."""
    grey = np.random.default_rng(0).integers(0, 65536, (9, 9)).astype(np.uint16)
    frames = [Image.new("RGB", (9, 9), colour) for colour in ("red", "blue")]
    for image, kind, options in (
        (Image.new("CMYK", (9, 9), (1, 2, 3, 4)), "JPEG", {}),
        (Image.fromarray(grey), "PNG", {}),
        (Image.new("P", (9, 9), 3), "PNG", {}),
        (Image.new("RGBA", (9, 9), (9, 9, 9, 0)), "PNG", {}),
        (frames[0], "WEBP", {"save_all": True, "append_images": frames[1:]}),
        (frames[0], "PNG", {"save_all": True, "append_images": frames[1:]}),
    ):
        file = io.BytesIO()
        image.save(file, kind, **options)
        response = await server.embed(input=uri(file.getvalue()))
        assert response.status_code == 200, (image.mode, kind, response.text)


@pytest.mark.parametrize(
    ("body", "status", "words", "loc"),
    [
        ({"input": [uri(picture(1))] * (MAX_IMAGES + 1)}, 400, f"at most {MAX_IMAGES}", ["input"]),
        ({"input": ["w1"] * 201}, 400, "at most 200", ["input"]),
        ({"input": [uri(picture(1)), "w1 " * 100]}, 400, "exceeds maximum allowed token size 32", ["input", 1]),
        ({"input": [uri(picture(1)), ""]}, 400, "input 1 is empty", ["input", 1]),
        ({"input": [uri(picture(1)), "w1"], "modality": "text"}, 400, "input 0, which is a picture", ["modality"]),
        ({"input": "w1", "modality": "text_image"}, 400, "input 0, which is a text", ["modality"]),
        ({"input": "w1", "dimensions": 4}, 400, f"gives {DIMENSION}", ["dimensions"]),
        ({"input": "w1", "embedding_type": "int8"}, 400, "is not served", ["embedding_type"]),
        ({"input": "w1", "model": "tiny-clip-query"}, 404, "does not exist here", ["model"]),
    ],
)
async def test_bad_fields_are_refused_with_their_place(
    server: Server, body: dict[str, Any], status: int, words: str, loc: list[Any]
) -> None:
    response = await server.embed(**body)
    answer = response.json()
    assert response.status_code == status
    assert words in answer["message"]
    assert answer["detail"]["loc"] == ["body", *loc]


@pytest.mark.parametrize("bad", [np.nan, 0.0])
async def test_vectors_that_are_wrong_are_a_500_whichever_engine_gave_them(model: Model, bad: float) -> None:
    def infer(inputs: Inputs) -> NDArray[np.float32]:
        return np.full((len(next(iter(inputs.values()))), DIMENSION), bad, np.float32)

    async with serving(model, infer=infer) as server:
        for entry in ("w1", uri(picture(1)), ["w1", uri(picture(1))]):
            response = await server.embed(input=entry)
            assert response.status_code == 500
            assert response.json()["type"] == "internal_error"
