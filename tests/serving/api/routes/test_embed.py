"""/v1/embeddings of a model that reads texts: its vectors in every form, and each field's mistakes."""

from __future__ import annotations

import base64
from collections.abc import AsyncIterator
from typing import Any

import msgspec
import numpy as np
import pytest
from numpy.typing import NDArray

from serving.backends.base import Inputs
from tests.support.api import Server, listening, serving
from tests.support.profiles import DIMENSION, Tiny
from tests.support.tiny_models import embedder

LONG = " ".join(["w1"] * 100)


@pytest.fixture
async def server(tiny: Tiny) -> AsyncIterator[Server]:
    async with serving(embedder(tiny)) as server:
        yield server


async def test_texts_become_their_vectors_in_order(server: Server, tiny: Tiny) -> None:
    texts = [f"w{n} w{n + 1}" for n in range(20)]
    response = await server.embed(input=texts, input_type="passage", user="someone", unknown_field=[1, {"a": None}])
    body = response.json()
    assert response.status_code == 200
    assert [item["index"] for item in body["data"]] == list(range(20))
    assert np.allclose([item["embedding"] for item in body["data"]], tiny.reference(texts), atol=1e-5)
    assert body["object"] == "list"
    assert body["model"] == "tiny"
    assert body["usage"] == {"prompt_tokens": 80, "total_tokens": 80}


async def test_base64_is_little_endian_float32(server: Server, tiny: Tiny) -> None:
    body = (await server.embed(encoding_format="base64")).json()
    vector = np.frombuffer(base64.b64decode(body["data"][0]["embedding"]), "<f4")
    assert np.allclose(vector, tiny.reference(["w1"])[0], atol=1e-5)


async def test_null_means_the_default_everywhere(server: Server) -> None:
    nulls = dict.fromkeys(("input_type", "encoding_format", "truncate", "dimensions", "embedding_type", "modality"))
    assert (await server.embed(**nulls)).status_code == 200
    assert (await server.embed(dimensions=DIMENSION, embedding_type="float")).status_code == 200
    for modality in ("text", ["text"], ["text", "text"]):
        assert (await server.embed(input=["w1", "w2"], modality=modality)).status_code == 200


async def test_fewer_dimensions_are_the_first_ones_made_as_long_as_one_again(tiny: Tiny) -> None:
    full = tiny.reference(["w1 w2"])[0]
    spec = msgspec.structs.replace(tiny.spec, matryoshka_dimensions=(4, 8))
    async with serving(embedder(tiny), spec=spec) as server:
        for asked, given in ((1, 1), (5, 5), (16, 16), (102_400, 16), (2**63, 16), (None, 16)):
            response = await server.embed(input="w1 w2", dimensions=asked)
            vector = np.array(response.json()["data"][0]["embedding"])
            wanted = full[:given] / np.linalg.norm(full[:given])
            assert vector.shape == (given,)
            assert np.allclose(vector, wanted, atol=1e-5)
        for asked in (0, -1):
            response = await server.embed(dimensions=asked)
            assert response.status_code == 400
            assert response.json()["detail"]["loc"] == ["body", "dimensions"]


@pytest.mark.parametrize(
    ("kind", "dtype"), [("float", "<f4"), ("int8", "i1"), ("uint8", "u1"), ("binary", "i1"), ("ubinary", "u1")]
)
async def test_every_embedding_type_is_the_same_vector_in_fewer_bits(tiny: Tiny, kind: str, dtype: str) -> None:
    texts = ["w1 w2", "w3", "w4 w5 w6"]
    full = tiny.reference(texts)
    largest = float(np.abs(full).max())
    spec = msgspec.structs.replace(tiny.spec, int8_range=largest, matryoshka_dimensions=(8,))
    async with serving(embedder(tiny), spec=spec) as server:

        async def get(**options: Any) -> Any:
            return [item["embedding"] for item in (await server.embed(input=texts, **options)).json()["data"]]

        numbers = np.array(await get(embedding_type=kind))
        listed = np.array(await get(embedding_type=[kind]))
        packed = [base64.b64decode(text) for text in await get(embedding_type=kind, encoding_format="base64")]
        few = np.array(await get(embedding_type=kind, dimensions=8))
    assert np.array_equal(numbers, listed)
    assert np.allclose(np.array([np.frombuffer(data, dtype) for data in packed]), numbers, atol=1e-6)
    step = largest / 127
    match kind:
        case "int8":
            assert np.allclose(numbers * step, full, atol=step / 2 + 1e-6)
        case "uint8":
            assert np.allclose((numbers / 127.5 - 1) * largest, full, atol=step / 2 + 1e-6)
        case "binary":
            assert np.array_equal(np.unpackbits((numbers + 128).astype(np.uint8), axis=1), full > 0)
        case "ubinary":
            assert np.array_equal(np.unpackbits(numbers.astype(np.uint8), axis=1), full > 0)
    if kind != "float":  # cut, and not stretched beyond what eight bits hold
        assert np.array_equal(few, numbers[:, : few.shape[1]])
        assert few.shape[1] == (1 if kind.endswith("binary") else 8)


async def test_a_suffix_of_the_model_name_says_the_input_type(tiny: Tiny) -> None:
    spec = msgspec.structs.replace(tiny.spec, query_prefix="w90 ")
    async with serving(embedder(tiny), spec=spec) as server:
        missing = await server.embed()
        assert missing.status_code == 400
        assert "input_type is missing" in missing.json()["message"]
        by_field = (await server.embed(input_type="query")).json()["data"]
        for name in ("tiny-query", "org/tiny-query"):
            assert (await server.embed(model=name)).json()["data"] == by_field
        assert (await server.embed(model="tiny-passage")).json()["data"] != by_field


async def test_too_long_a_text_fails_in_the_words_that_clients_look_for_unless_truncated(server: Server) -> None:
    response = await server.embed(input=["w1", LONG])
    body = response.json()
    assert response.status_code == 400
    assert body["error"].startswith("Input length 102 exceeds maximum allowed token size 32")
    assert body["detail"]["loc"] == ["body", "input", 1]
    assert "truncate" in body["message"]
    for truncate in ("START", "END"):
        assert (await server.embed(input=["w1", LONG], truncate=truncate)).json()["usage"]["prompt_tokens"] == 35


@pytest.mark.parametrize(
    ("body", "status", "words", "loc"),
    [
        ({"input": []}, 400, "input is empty", ["input"]),
        ({"input": ""}, 400, "input 0 is empty", ["input", 0]),
        ({"input": ["w1", ""]}, 400, "input 1 is empty", ["input", 1]),
        ({"input": ["w1"] * 21}, 400, "21 texts, at most 20", ["input"]),
        ({"input": [1, 2]}, 400, "Expected `str`", ["input", 0]),
        ({"input": ["w1", None]}, 400, "Expected `str`", ["input", 1]),
        ({"input": {"text": "w1"}}, 400, "Expected `str | array`", ["input"]),
        ({"model": None}, 400, "Expected `str`", ["model"]),
        ({"encoding_format": "hex"}, 400, "Invalid enum value 'hex'", ["encoding_format"]),
        ({"truncate": "MIDDLE"}, 400, "Invalid enum value", ["truncate"]),
        ({"input_type": "document"}, 400, "Invalid enum value", ["input_type"]),
        ({"dimensions": 0}, 400, "this model gives 16", ["dimensions"]),
        ({"dimensions": -1}, 400, "this model gives 16", ["dimensions"]),
        ({"dimensions": 10**30}, 400, "", ["dimensions"]),
        ({"embedding_type": "int8"}, 400, "float, binary and ubinary are", ["embedding_type"]),
        ({"embedding_type": ["float", "binary"]}, 400, "names 2 types", ["embedding_type"]),
        ({"embedding_type": []}, 400, "names 0 types", ["embedding_type"]),
        ({"modality": "image"}, 400, "'image' of input 0, which is a text", ["modality"]),
        ({"modality": ["text", "text"]}, 400, "names 2 entries, input has 1", ["modality"]),
        ({"model": "gpt"}, 404, "The model 'gpt' does not exist here; use tiny, org/tiny", ["model"]),
    ],
)
async def test_bad_fields_are_refused_with_their_place(
    server: Server, body: dict[str, Any], status: int, words: str, loc: list[Any]
) -> None:
    response = await server.embed(**body)
    answer = response.json()
    assert response.status_code == status
    assert answer["object"] == "error"
    assert words in answer["message"]
    assert answer["detail"]["loc"] == ["body", *loc]


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"[]",
        b'{"model":"tiny","input":"w1"} x',
        b'{"model":"tiny","input":"\xff"}',
        b'\xef\xbb\xbf{"model":"tiny","input":"w1"}',
        b'{"model":"tiny","input":"\\ud800"}',
        b'{"model":"tiny","input":"w1","x":' + b"[" * 100_000 + b"]" * 100_000 + b"}",
        b'{"model":"tiny","input":"w1","x":NaN}',
        b'{"model":"tiny","input":' + b"9" * 100_000 + b"}",
        b'{"model":"tiny"}',
    ],
)
async def test_what_is_not_the_json_of_a_request_is_the_clients_error(server: Server, body: bytes) -> None:
    response = await server.client.post("/v1/embeddings", content=body, headers={"content-type": "application/json"})
    assert response.status_code == 400
    assert response.json()["type"] == "request_validation_error"


@pytest.mark.parametrize("bad", [np.nan, np.inf, 0.0])
async def test_vectors_that_are_wrong_are_a_500_and_never_an_answer(tiny: Tiny, bad: float) -> None:
    def infer(inputs: Inputs) -> NDArray[np.float32]:
        return np.full((len(inputs["input_ids"]), DIMENSION), bad, np.float32)

    async with serving(embedder(tiny), infer=infer) as server:
        response = await server.embed()
        assert response.status_code == 500
        assert response.json()["type"] == "internal_error"


async def test_the_openai_client_reads_the_answer(server: Server, tiny: Tiny) -> None:
    openai = pytest.importorskip("openai")
    async with listening(server) as port:
        client = openai.AsyncOpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key="none", max_retries=0)
        answer = await client.embeddings.create(model="tiny", input=["w1", "w2"], extra_body={"input_type": "query"})
        assert np.allclose([item.embedding for item in answer.data], tiny.reference(["w1", "w2"]), atol=1e-5)
        with pytest.raises(openai.BadRequestError) as caught:
            await client.embeddings.create(model="tiny", input=[LONG])
        assert "exceeds maximum allowed token size" in caught.value.response.text
        await client.close()
