"""Bodies that are wrong in every way we know of, for every task: the documented status, and the server lives on."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest

from serving.api.state import Limits
from tests.support.api import Server, serving
from tests.support.profiles import Tiny
from tests.support.tiny_models import Model, embedder, reranker, see_and_read

TASKS: dict[str, tuple[str, Callable[[Tiny], Model], str]] = {  # -> route, model, the field that holds texts
    "embed": ("/v1/embeddings", embedder, "input"),
    "clip": ("/v1/embeddings", lambda tiny: see_and_read(), "input"),
    "ranking": ("/v1/ranking", lambda tiny: reranker(), "passages"),
    "rerank": ("/v1/rerank", lambda tiny: reranker(), "documents"),
    "tei": ("/rerank", lambda tiny: reranker(), "texts"),
}


class Target:
    """One route of one model, and a body that it answers."""

    def __init__(self, server: Server, path: str, field: str) -> None:
        self.server, self.path, self.field = server, path, field
        asked = {} if field == "input" else {"query": "w1"}
        self.good: dict[str, Any] = {"model": server.service.names[0], **asked, field: ["w1", "w2"]}

    async def send(self, body: bytes) -> tuple[int, Any]:
        headers = {"content-type": "application/json"}
        response = await self.server.client.post(self.path, content=body, headers=headers)
        return response.status_code, response.json()

    async def send_with(self, **changes: Any) -> tuple[int, Any]:
        return await self.send(json.dumps(self.good | changes).encode())


@pytest.fixture(params=TASKS)
async def target(request: pytest.FixtureRequest, tiny: Tiny) -> AsyncIterator[Target]:
    path, make, field = TASKS[request.param]
    limits = Limits(max_inputs=2048, max_body_bytes=8_000_000)
    async with serving(make(tiny), limits=limits, queue=5000) as server:
        yield Target(server, path, field)
        # Whatever was sent: the next request is answered, and nothing was counted as our fault.
        status, _ = await Target(server, path, field).send_with()
        assert status == 200
        assert 'status="5' not in server.metrics.text().decode()


NOT_JSON: dict[str, bytes] = {
    "nothing": b"",
    "half of it": b'{"model": "tiny", "input": ["w',
    "not UTF-8": b'{"model": "\xff\xfe"}',
    "Latin-1": '{"model": "é"}'.encode("latin-1"),
    "UTF-16": '{"model": "tiny"}'.encode("utf-16"),
    "a byte order mark": b'\xef\xbb\xbf{"model": "tiny"}',
    "a lone surrogate": b'{"model": "\\ud800"}',
    "a surrogate in UTF-8": b'{"model": "\xed\xa0\x80"}',
    "trailing bytes": b'{"model": "tiny"} {}',
    "a trailing comma": b'{"model": "tiny",}',
    "single quotes": b"{'model': 'tiny'}",
    "a comment": b'{"model": "tiny" /* x */}',
    "NaN": b'{"model": "tiny", "x": NaN}',
    "Infinity": b'{"model": "tiny", "x": -Infinity}',
    "a bare control character": b'{"model": "a\x00b"}',
    "depth of 10 000": b'{"x": ' + b"[" * 10_000 + b"]" * 10_000 + b"}",
    "objects 100 000 deep": b'{"x":' * 100_000 + b"1" + b"}" * 100_000,
    "brackets that never close": b"[" * 1_000_000,
    "a form": b"model=tiny&input=w1",
    "gzip": b"\x1f\x8b\x08\x00\x00\x00\x00\x00\x00\x03",
}


@pytest.mark.parametrize("body", NOT_JSON.values(), ids=NOT_JSON.keys())
async def test_what_is_not_json_is_a_400(target: Target, body: bytes) -> None:
    status, answer = await target.send(body)
    assert status == 400
    assert answer["type"] == "request_validation_error"


@pytest.mark.parametrize("root", [b"[]", b"null", b"1", b'"w1"', b"true", b"1e400", b"{}", b'{"a": 1}'])
async def test_json_that_is_no_request_is_a_400(target: Target, root: bytes) -> None:
    status, answer = await target.send(root)
    assert status == 400
    assert answer["type"] == "request_validation_error"


BAD_TEXTS: list[Any] = [
    None,
    [],
    [None],
    {},
    {"text": "w1"},
    [["w1"]],
    [1, 2, 3],  # OpenAI's arrays of tokens
    [[1, 2], [3]],
    [-1],
    [10**30],
    [0.5],
    [True],
    [{}],
    [{"text": None}],
    [{"text": 1}],
    ["w1", None],
    ["w1", ""],
    5,
    True,
]


@pytest.mark.parametrize("texts", BAD_TEXTS, ids=repr)
async def test_texts_of_a_wrong_form_are_a_400_that_names_their_place(target: Target, texts: Any) -> None:
    status, answer = await target.send_with(**{target.field: texts})
    assert status == 400
    assert answer["type"] == "request_validation_error"
    if texts is not None or target.field not in ("documents", "texts"):  # null is as good as not sent
        assert answer["detail"]["loc"][:2] == ["body", target.field]


async def test_too_many_entries_are_a_400_that_says_how_many_may_be_sent(target: Target) -> None:
    status, answer = await target.send_with(**{target.field: ["w1"] * 10_000})
    assert status == 400
    assert "10000 texts, at most 2048 are taken" in answer["message"]


async def test_as_many_as_are_taken_are_answered(target: Target) -> None:
    status, answer = await target.send_with(**{target.field: ["w1 w2"] * 2048})
    assert status == 200
    listed = (
        answer if isinstance(answer, list) else next(answer[n] for n in ("data", "rankings", "results") if n in answer)
    )
    assert [item["index"] for item in listed] == list(range(2048))


@pytest.mark.parametrize(
    "text",
    [
        "w1 " * 2_000_000,
        "x" * 5_000_000,
        "\u200d" * 1_000_000,
        "👩\u200d👩\u200d👧" * 100_000,
        "\u202e" + "א" * 10_000,
        "w1 w2 w3 " * 12,
    ],
    ids=["6 MB of words", "5 MB of one word", "joiners", "families", "right to left", "a little too long"],
)
async def test_texts_that_are_too_long_are_a_400_in_the_words_that_clients_look_for(target: Target, text: str) -> None:
    status, answer = await target.send_with(**{target.field: ["w1", text]})
    if status == 200:  # one unknown word, however long, is one token
        assert len(text) <= 250 * 32
        return
    assert status == 400
    assert "exceeds maximum allowed token size 32" in answer["error"]
    assert answer["type"] == "input_too_long"
    assert answer["detail"]["loc"] == ["body", target.field, 1]
    for truncate in ("END", "START"):
        status, answer = await target.send_with(**{target.field: ["w1", text]}, truncate=truncate)
        assert status == 200 or "holds no token" in answer["message"]


@pytest.mark.parametrize("text", ["\u0000", "\u0000w1", "\ufffe", "w1\r\n\u2028", "\U0010ffff", "e\u0301" * 50])
async def test_strange_characters_are_texts(target: Target, text: str) -> None:
    status, answer = await target.send_with(**{target.field: [text]})
    assert status == 200 or (status == 400 and target.field in answer["detail"]["loc"])


async def test_texts_without_a_token_are_answered_or_named(target: Target) -> None:
    for text in (" ", "\t\n", " " * 5000):
        status, answer = await target.send_with(**{target.field: ["w1", text]})
        assert status == 200 or (status == 400 and answer["detail"]["loc"] == ["body", target.field, 1])


async def test_of_keys_sent_twice_the_last_counts_and_unknown_ones_do_not(target: Target) -> None:
    good = json.dumps(target.good).encode()
    status, _ = await target.send(b'{"model": "gpt", "unknown": {"a": [1e400, null]}, ' + good[1:])
    assert status == 200
    status, _ = await target.send(good[:-1] + b', "model": "gpt"}')
    assert status == 404


@pytest.mark.parametrize(
    "model", ["", "gpt", "tiny\u0000", "../tiny", "x" * 1_000_000, "TINY", " tiny", "\r\nset-cookie: a=b"]
)
async def test_unknown_models_are_a_404_with_a_short_message(target: Target, model: str) -> None:
    status, answer = await target.send_with(model=model)
    assert status == 404
    assert answer["type"] == "model_not_found"
    assert len(answer["message"]) < 300


@pytest.mark.parametrize(
    "number", [b"1e400", b"-1e400", b"9" * 5000, b"-1", b"0", b"1.5", b"true", b'"8"', b"[]", b"1e2"]
)
async def test_numbers_that_are_none_or_out_of_range_are_a_400(target: Target, number: bytes) -> None:
    field = {"input": b"dimensions", "passages": b"truncate"}.get(target.field, b"top_n")
    status, answer = await target.send(json.dumps(target.good).encode()[:-1] + b', "' + field + b'": ' + number + b"}")
    assert status == 400
    assert answer["detail"]["loc"] == ["body", field.decode()]


async def test_null_means_the_default_of_every_field_but_the_texts(target: Target) -> None:
    names = ("input_type", "modality", "encoding_format", "truncate", "dimensions", "embedding_type", "user", "top_n")
    more = ("return_documents", "return_text", "raw_scores", "max_chunks_per_doc", "rank_fields")
    status, _ = await target.send_with(**dict.fromkeys((*names, *more)))
    assert status == 200


async def test_a_body_over_the_limit_is_a_413_and_one_at_the_limit_is_read(target: Target) -> None:
    good = json.dumps(target.good).encode()
    assert (await target.send(good.ljust(8_000_000)))[0] == 200
    status, answer = await target.send(good.ljust(8_000_001))
    assert status == 413
    assert "8000000 bytes" in answer["message"]
