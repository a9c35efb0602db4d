"""The HTTP API: what NIM's clients send and read, every refusal, and the limits of one request."""

from __future__ import annotations

import asyncio
import base64
import json
import logging
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import datetime
from pathlib import Path
from typing import Any

import httpx
import msgspec
import numpy as np
import pytest
from numpy.typing import NDArray

from serving.api.state import Limits
from serving.backends.base import Inputs
from serving.batching.lanes import Infer
from serving.http import listen, protocol
from serving.tasks.base import ONLY
from serving.watch.logs import FIELDS, JsonFormatter
from tests.support import api
from tests.support.api import Server, listening
from tests.support.profiles import DIMENSION, Tiny
from tests.support.tiny_models import embedder

LONG = " ".join(["w1"] * 100)


@asynccontextmanager
async def serving(tiny: Tiny, **options: Any) -> AsyncIterator[Server]:
    async with api.serving(embedder(tiny), **options) as server:
        yield server


@pytest.fixture
async def server(tiny: Tiny) -> AsyncIterator[Server]:
    async with serving(tiny) as server:
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
    async with serving(tiny, spec=spec) as server:
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
    async with serving(tiny, spec=spec) as server:

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
    async with serving(tiny, spec=spec) as server:
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


async def test_other_media_and_compressed_bodies_are_refused(server: Server) -> None:
    for headers in ({"content-type": "text/plain"}, {"content-type": "application/json", "content-encoding": "gzip"}):
        response = await server.client.post("/v1/embeddings", content=b"{}", headers=headers)
        assert response.status_code == 415


async def test_unknown_routes_and_methods_are_refused(server: Server) -> None:
    for path in ("/", "/v1/embeddings/", "//v1/embeddings", "/V1/embeddings", "/v1/admin", "/openapi"):
        assert (await server.client.get(path)).status_code == 404
    for method, path, allowed in (("GET", "/v1/embeddings", "POST"), ("POST", "/v1/models", "GET, HEAD")):
        response = await server.client.request(method, path)
        assert response.status_code == 405
        assert response.headers["allow"] == allowed


async def test_the_body_limit_fires_while_reading(tiny: Tiny) -> None:
    async with serving(tiny, limits=Limits(max_body_bytes=1000)) as server:
        sent = 0

        async def endless() -> AsyncIterator[bytes]:
            nonlocal sent
            while sent < 1_000_000:
                sent += 100
                yield b" " * 100

        response = await server.client.post("/v1/embeddings", content=endless())
        assert response.status_code == 413
        assert "1000 bytes" in response.json()["message"]
        assert sent <= 1200
        declared = await server.client.post("/v1/embeddings", content=b"", headers={"content-length": "1001"})
        assert declared.status_code == 413
        body = b'{"model":"tiny","input":"w1"}'
        assert (await server.client.post("/v1/embeddings", content=body.ljust(1000))).status_code == 200
        assert (await server.client.post("/v1/embeddings", content=body.ljust(1001))).status_code == 413


async def test_a_body_that_does_not_arrive_ends_in_408(tiny: Tiny) -> None:
    async with serving(tiny, limits=Limits(body_timeout_s=0.05)) as server:

        async def stalled() -> AsyncIterator[bytes]:
            yield b"{"
            await asyncio.sleep(5)
            yield b"}"

        assert (await server.client.post("/v1/embeddings", content=stalled())).status_code == 408


async def test_a_full_queue_turns_the_request_away_with_429_and_a_time(tiny: Tiny) -> None:
    gate, infer = held(tiny)
    async with serving(tiny, infer=infer, queue=4) as server:
        waiting = []
        for num_queued in (0, 0, 8):  # one batch runs, one is prepared, one waits
            waiting.append(asyncio.create_task(server.embed(input=["w1"] * 8)))
            batcher = server.batcher
            while batcher._num_taken - batcher._num_ended < len(waiting) or batcher._waiting.num_items != num_queued:
                await asyncio.sleep(0.005)
        response = await server.embed()
        assert response.status_code == 429
        assert int(response.headers["retry-after"]) >= 1
        gate.set()
        assert [(await task).status_code for task in waiting] == [200, 200, 200]


async def test_too_many_requests_at_once_are_turned_away(tiny: Tiny) -> None:
    gate, infer = held(tiny)
    async with serving(tiny, infer=infer, limits=Limits(max_in_flight=2)) as server:
        waiting = [asyncio.create_task(server.embed()) for _ in range(2)]
        while server.state.in_flight < 2:
            await asyncio.sleep(0.005)
        assert (await server.embed()).status_code == 429
        gate.set()
        assert [(await task).status_code for task in waiting] == [200, 200]
        assert server.state.in_flight == 0


async def test_on_a_socket_a_busy_server_answers_from_the_head_and_the_connection_goes_on(
    tiny: Tiny, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    gate, infer = held(tiny)
    async with serving(tiny, infer=infer, limits=Limits(max_in_flight=1)) as server, listening(server) as port:
        base, body = f"http://127.0.0.1:{port}", {"model": "tiny", "input": "w1"}
        limits = httpx.Limits(max_connections=1)
        async with httpx.AsyncClient(base_url=base) as first, httpx.AsyncClient(base_url=base, limits=limits) as second:
            waiting = asyncio.create_task(first.post("/v1/embeddings", json=body))
            while not server.state.in_flight:
                await asyncio.sleep(0.005)
            for path in ("/v1/embeddings", "/v1/embeddings?a=b", "/v1/ranking"):
                refused = await second.post(path, json=body | {"padding": "x" * 500_000})
                assert refused.status_code == 429
                assert refused.json()["type"] == "overloaded"
                assert refused.headers["retry-after"] == "1"
                assert len(refused.headers["x-request-id"]) == 32
            assert (await second.get("/v1/health/ready")).status_code == 200
            gate.set()
            assert (await waiting).status_code == 200
            assert (await second.post("/v1/embeddings", json=body)).status_code == 200
            pool = second._transport._pool  # type: ignore[attr-defined]
            assert len(pool.connections) == 1
        told = server.metrics.text().decode()
        assert 'request_count_total{route="/v1/embeddings",status="429"} 2.0' in told
        logged = [getattr(record, FIELDS, {}) for record in caplog.records]
        assert [fields["route"] for fields in logged if fields.get("status") == 429] == ["/v1/embeddings"]  # with ?a=b


async def test_a_busy_server_closes_a_connection_whose_client_wants_that(tiny: Tiny) -> None:
    gate, infer = held(tiny)
    async with serving(tiny, infer=infer, limits=Limits(max_in_flight=1)) as server, listening(server) as port:
        waiting = asyncio.create_task(server.embed())
        while not server.state.in_flight:
            await asyncio.sleep(0.005)
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        head = b"POST /v1/embeddings HTTP/1.1\r\nhost: a\r\nconnection: close\r\ncontent-length: 4\r\n\r\n"
        writer.write(head + b"{}")
        await writer.drain()
        await asyncio.sleep(0.02)
        writer.write(b"  ")
        answer = await asyncio.wait_for(reader.read(), 5)
        assert answer.startswith(b"HTTP/1.1 429 ")
        assert answer.endswith(b"}")
        writer.close()
        gate.set()
        assert (await waiting).status_code == 200


async def test_a_hanging_engine_ends_in_504_and_its_request_leaves_the_queue(tiny: Tiny) -> None:
    gate, infer = held(tiny)
    async with serving(tiny, infer=infer, limits=Limits(request_timeout_s=0.1)) as server:
        first, second = await asyncio.gather(server.embed(input=["w1"] * 8), server.embed(input=["w1"] * 20))
        assert {first.status_code, second.status_code} == {504}
        assert server.batcher._waiting.num_items == 0
        gate.set()


@pytest.mark.parametrize("bad", [np.nan, np.inf, 0.0])
async def test_vectors_that_are_wrong_are_a_500_and_never_an_answer(tiny: Tiny, bad: float) -> None:
    def infer(inputs: Inputs) -> NDArray[np.float32]:
        return np.full((len(inputs["input_ids"]), DIMENSION), bad, np.float32)

    async with serving(tiny, infer=infer) as server:
        response = await server.embed()
        assert response.status_code == 500
        assert response.json()["type"] == "internal_error"


async def test_an_engine_error_is_a_500_that_does_not_leak_its_text(tiny: Tiny) -> None:
    def infer(inputs: Inputs) -> NDArray[np.float32]:
        raise RuntimeError("0x7f00dead at /secret/path")

    async with serving(tiny, infer=infer) as server:
        response = await server.embed()
        assert response.status_code == 500
        assert "secret" not in response.text


async def test_a_client_that_leaves_takes_its_texts_out_of_the_queue(tiny: Tiny) -> None:
    gate, infer = held(tiny)
    async with serving(tiny, infer=infer) as server:
        first = asyncio.create_task(server.embed())
        while not server.state.in_flight:
            await asyncio.sleep(0.005)
        messages = [{"type": "http.request", "body": b'{"model":"tiny","input":["w2","w3"]}', "more_body": False}]
        gone = asyncio.Event()

        async def receive() -> dict[str, Any]:
            if messages:
                return messages.pop()
            await gone.wait()
            return {"type": "http.disconnect"}

        async def send(message: object) -> None:
            raise AssertionError("nobody reads this")

        scope = {"type": "http", "method": "POST", "path": "/v1/embeddings", "headers": []}
        leaving = asyncio.create_task(server.app(scope, receive, send))
        while server.batcher._waiting.num_items < 2:
            await asyncio.sleep(0.005)
        gone.set()
        await leaving
        assert server.batcher._waiting.num_items == 0
        assert 'request_count_total{route="/v1/embeddings",status="499"} 1.0' in server.metrics.text().decode()
        gate.set()
        assert (await first).status_code == 200


async def test_management_routes_answer_what_the_operator_reads(server: Server) -> None:
    async def get(path: str) -> Any:
        response = await server.client.get(path)
        assert response.status_code == 200
        return response.json()

    (model,) = (await get("/v1/models"))["data"]
    assert model["id"] == model["root"] == "tiny"
    assert model["object"] == "model"
    assert model["max_model_len"] == 32
    metadata = await get("/v1/metadata")
    assert metadata["selectedModelProfileId"] == "f" * 64
    assert metadata["modelInfo"][0]["shortName"] == "tiny:0.1.0"
    assert {"assetInfo", "licenseInfo", "repository_override", "version"} <= set(metadata)
    assert (await get("/v1/manifest"))["manifest_file"].startswith("schema_version")
    assert (await get("/v1/version"))["release"] == "0.1.0"
    for path, status in (("/v1/health/live", "live"), ("/v1/health/ready", "ready")):
        body = await get(path)
        assert {"object": "health.response", "ready": True, "status": status}.items() <= body.items()
        assert "message" in body
    assert (await server.client.get("/v1/license")).status_code == 404


async def test_before_it_is_ready_only_probes_and_metrics_are_answered(server: Server) -> None:
    server.state.service, server.state.message = None, "loading: prove"
    live, ready = await server.client.get("/v1/health/live"), await server.client.get("/v1/health/ready")
    assert (live.status_code, ready.status_code) == (200, 503)
    assert ready.json()["message"] == "loading: prove"
    assert ready.json()["ready"] is False
    assert (await server.client.get("/metrics")).status_code == 200
    assert (await server.embed()).status_code == (await server.client.get("/v1/models")).status_code == 503


async def test_while_draining_new_requests_get_503_and_the_connection_closes(server: Server) -> None:
    server.state.draining, server.state.message = True, "draining"
    response = await server.embed()
    assert response.status_code == 503
    assert response.headers["connection"] == "close"
    assert (await server.client.get("/v1/health/ready")).status_code == 503
    assert (await server.client.get("/v1/health/live")).status_code == 200


async def test_labels_do_not_grow_with_bad_paths(server: Server) -> None:
    await server.embed()
    await server.client.get("/nothing")
    before = len(server.metrics.text().splitlines())
    for n in range(300):
        await server.client.get(f"/nothing/{n}")
    assert len(server.metrics.text().splitlines()) == before
    for name in (
        'queue_depth{tower="model"} 0.0',
        'batch_size_count{tower="model"} 1.0',
        "prompt_tokens_total 3.0",
        'queue_time_seconds_count{tower="model"} 1.0',
    ):
        await server.tells(name)


@pytest.mark.parametrize("text", ["plain", "two\nlines", "half a pair \ud800", "\x1b[31m"])
def test_a_json_line_is_one_line_whatever_it_says(text: str) -> None:
    record = logging.LogRecord("n", logging.INFO, "f", 1, text, None, None)
    setattr(record, FIELDS, {"text": text, "path": Path("a")})
    line = JsonFormatter().format(record)
    assert "\n" not in line
    assert "\x1b" not in line
    told = json.loads(line)
    assert (told["message"], told["text"], told["path"]) == (text, text, "a")
    assert datetime.fromisoformat(told["time"]).timestamp() == pytest.approx(record.created, abs=0.002)


async def test_a_request_leaves_one_json_line_that_it_cannot_forge(
    server: Server, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO):
        strange = [(b"x-request-id", "x\u2028".encode())]
        response = await server.client.post(
            "/v1/embeddings", content=b'{"model":"a\\nb","input":"secret"}', headers=strange
        )
        kept = await server.client.get("/lost%0A", headers={"x-request-id": "abc-1"})
    lines = [JsonFormatter().format(record) for record in caplog.records if record.name == "serving.api.app"]
    assert len(lines) == 2
    first = json.loads(lines[0])
    assert (first["status"], first["route"]) == (404, "/v1/embeddings")
    assert first["request_id"] == response.headers["x-request-id"] != "x\u2028"
    assert "secret" not in "".join(lines)
    assert "\n" not in "".join(lines)
    assert kept.headers["x-request-id"] == "abc-1"


async def raw(port: int, data: bytes, *, wait_s: float = 5.0) -> bytes:
    """What comes back until the server closes."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(data)
    try:
        return await asyncio.wait_for(reader.read(), wait_s)
    except ConnectionResetError:
        return b""
    finally:
        writer.close()


async def test_heads_that_are_slow_or_large_are_cut_off(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(protocol, "HEAD_TIMEOUT_S", 0.2)
    async with listening(server) as port:
        slow = await asyncio.gather(*(raw(port, b"GET /v1/health/live HTTP/1.1\r\nhost:") for _ in range(20)))
        assert all(answer.startswith(b"HTTP/1.1 408") for answer in slow)
        large = await raw(port, b"GET / HTTP/1.1\r\nx: " + b"a" * 20_000)
        assert large.startswith(b"HTTP/1.1 431")
        whole = await raw(port, b"GET / HTTP/1.1\r\nx: " + b"a" * 20_000 + b"\r\n\r\n")
        assert whole.startswith(b"HTTP/1.1 431")
        assert whole.count(b"HTTP/1.1") == 1
        many = await raw(port, b"GET / HTTP/1.1\r\n" + b"a: b\r\n" * 101 + b"\r\n")
        assert many.startswith(b"HTTP/1.1 400")
        idle = await raw(port, b"")
        assert idle.startswith(b"HTTP/1.1 408")
        async with httpx.AsyncClient() as client:
            live = f"http://127.0.0.1:{port}/v1/health/live"
            assert (await client.get(live)).status_code == 200
            await asyncio.sleep(0.4)  # an idle connection that has been used is kept
            assert (await client.get(live)).status_code == 200


@pytest.mark.parametrize(
    "head",
    [
        b"POST /v1/embeddings HTTP/1.1\r\ncontent-length: 5\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n",
        b"POST /v1/embeddings HTTP/1.1\r\ncontent-length: 5\r\ncontent-length: 6\r\n\r\nhello",
        b"POST /v1/embeddings HTTP/1.1\r\ntransfer-encoding: chunked\r\n\r\nzz\r\n",
        b"GET / HTTP/0.9\r\n\r\n\x00",
        b"GET / HTTP/1.1\r\na\x00b: c\r\n\r\n",
    ],
)
async def test_broken_framing_harms_no_other_connection(server: Server, head: bytes) -> None:
    async with listening(server) as port:
        assert (await raw(port, head)).startswith(b"HTTP/1.1 40")
        async with httpx.AsyncClient() as client:
            assert (await client.get(f"http://127.0.0.1:{port}/v1/health/live")).status_code == 200


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


def test_a_port_that_is_taken_is_named_with_the_remedy(tmp_path: Path) -> None:
    taken = listen.bind("127.0.0.1", 0)
    taken.listen()
    with pytest.raises(listen.ListenError, match="NIM_HTTP_API_PORT"):
        listen.bind("127.0.0.1", taken.getsockname()[1])
    taken.close()


def held(tiny: Tiny) -> tuple[Any, Infer]:
    """An engine that waits until its gate opens."""
    backend = embedder(tiny).backend(ONLY)
    gate = threading.Event()

    def infer(inputs: Inputs) -> NDArray[np.float32]:
        gate.wait(10)
        return backend.infer(inputs)

    return gate, infer
