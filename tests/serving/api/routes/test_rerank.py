"""The routes that rank: NIM's form, Cohere's and Jina's, text-embeddings-inference's; a pair's score is its own."""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncIterator
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from serving.api.state import Limits
from serving.backends.base import Inputs
from serving.start.prove import rows
from serving.tasks.base import ONLY
from serving.tasks.rerank import Encoder, RerankSpec
from tests.support.api import Server, serving
from tests.support.tiny_models import Model, reranker

LONG = " ".join(["w1"] * 100)
QUERY = "w1 w2"
PASSAGES = [f"w{n} w{n + 3} w1" for n in range(12)]


@pytest.fixture(scope="module")
def model() -> Model:
    return reranker()


@pytest.fixture
async def server(model: Model) -> AsyncIterator[Server]:
    async with serving(model) as server:
        yield server


def alone(model: Model, query: str, passages: list[str]) -> NDArray[np.float32]:
    """Each pair's logit in a batch of its own."""
    assert isinstance(model.spec, RerankSpec)
    encoder, backend = Encoder(model.tokenizer, model.spec), model.backend(ONLY)
    tower = model.spec.towers[0]
    return np.array([rows(backend.infer, tower, encoder.encode(query, [p], truncate="END"))[0, 0] for p in passages])


async def test_passages_come_back_by_falling_logit_with_their_place(server: Server, model: Model) -> None:
    response = await server.post("/v1/ranking", query={"text": QUERY}, passages=[{"text": p} for p in PASSAGES])
    body = response.json()
    expected = alone(model, QUERY, PASSAGES)
    assert response.status_code == 200
    assert [item["index"] for item in body["rankings"]] == list(np.argsort(-expected))
    assert np.allclose([item["logit"] for item in body["rankings"]], np.sort(expected)[::-1], atol=1e-4)
    assert expected.std() > 0.1  # else any order would do
    num_tokens = 12 * (2 + 3 + 3)
    assert body["usage"] == {"prompt_tokens": num_tokens, "total_tokens": num_tokens}


async def test_equal_passages_keep_the_order_in_which_they_were_sent(server: Server) -> None:
    body = {"query": {"text": QUERY}, "passages": [{"text": "w5"}] * 20}
    rankings = (await server.post("/v1/ranking", **body)).json()["rankings"]
    assert [item["index"] for item in rankings] == list(range(20))


async def test_what_clients_send_beside_it_is_tolerated(server: Server) -> None:
    """langchain sends image: null; LiteLLM sends null fields; plain strings are understood."""
    passages = [{"text": "w1", "image": None, "id": 7}, "w2"]
    response = await server.post("/v1/ranking", query=QUERY, passages=passages, truncate=None, user="u", top_n=None)
    assert response.status_code == 200
    assert len(response.json()["rankings"]) == 2


async def test_too_long_a_pair_fails_in_the_words_that_clients_look_for_unless_truncated(
    server: Server, model: Model
) -> None:
    body: dict[str, Any] = {"query": {"text": QUERY}, "passages": [{"text": "w1"}, {"text": LONG}]}
    for nothing in ({}, {"truncate": "NONE"}, {"truncate": None}):
        response = await server.post("/v1/ranking", **body, **nothing)
        assert response.status_code == 400
        answer = response.json()
        assert answer["error"].startswith("Input length 105 exceeds maximum allowed token size 32")
        assert answer["detail"]["loc"] == ["body", "passages", 1]
    for truncate in ("END", "START"):
        answer = (await server.post("/v1/ranking", **body, truncate=truncate)).json()
        assert answer["usage"]["prompt_tokens"] == 6 + 32
    cut = {item["index"]: item["logit"] for item in answer["rankings"]}
    kept = " ".join(["w1"] * (32 - 5))
    assert cut[1] == pytest.approx(alone(model, QUERY, [kept])[0], abs=1e-4)


@pytest.mark.parametrize(
    ("body", "status", "words", "loc"),
    [
        ({"passages": []}, 400, "passages is empty", ["passages"]),
        ({"passages": [{"text": "w1"}] * 21}, 400, "21 texts, at most 20", ["passages"]),
        ({"passages": [{"text": ""}]}, 400, "passages 0 is empty", ["passages", 0]),
        ({"passages": [{"text": "w1"}, {}]}, 400, "missing required field `text`", ["passages", 1]),
        ({"passages": [{"text": 1}]}, 400, "Expected `str`", ["passages", 0, "text"]),
        ({"passages": "w1"}, 400, "Expected `array`", ["passages"]),
        ({"passages": None}, 400, "Expected `array`", ["passages"]),
        ({"passages": [None]}, 400, "Expected", ["passages", 0]),
        ({"query": {"text": ""}}, 400, "query is empty", ["query"]),
        ({"query": {}}, 400, "missing required field `text`", ["query"]),
        ({"query": 3}, 400, "Expected", ["query"]),
        ({"truncate": "MIDDLE"}, 400, "Invalid enum value", ["truncate"]),
        (
            {"passages": [{"text": "w1", "image": "data:image/png;base64,AAAA"}]},
            400,
            "this model reads texts only",
            ["passages", 0, "image"],
        ),
        ({"query": {"text": "w1", "image": "x"}}, 400, "this model reads texts only", ["query", "image"]),
        ({"model": "gpt"}, 404, "The model 'gpt' does not exist here; use tiny-rerank", ["model"]),
        ({"model": "tiny-rerank-query"}, 404, "does not exist here", ["model"]),
    ],
)
async def test_bad_fields_are_refused_with_their_place(
    server: Server, body: dict[str, Any], status: int, words: str, loc: list[Any]
) -> None:
    good = {"query": {"text": "w1"}, "passages": [{"text": "w1"}]}
    response = await server.post("/v1/ranking", **(good | body))
    answer = response.json()
    assert response.status_code == status
    assert words in answer["message"]
    assert answer["detail"]["loc"] == ["body", *loc]


async def test_documents_are_answered_as_cohere_and_jina_do(server: Server, model: Model) -> None:
    expected = alone(model, QUERY, PASSAGES)
    documents: list[Any] = [*PASSAGES[:6], *({"text": passage, "title": "t"} for passage in PASSAGES[6:])]
    for path in ("/v1/rerank", "/rerank"):
        response = await server.post(path, query=QUERY, documents=documents, top_n=3, return_documents=True)
        body = response.json()
        assert response.status_code == 200
        order = np.argsort(-expected)[:3]
        assert [item["index"] for item in body["results"]] == list(order)
        assert [item["document"] for item in body["results"]] == [{"text": PASSAGES[n]} for n in order]
        for item in body["results"]:
            assert item["relevance_score"] == pytest.approx(1 / (1 + math.exp(-expected[item["index"]])), abs=1e-4)
        assert body["model"] == "tiny-rerank"
        assert body["usage"]["total_tokens"] == 12 * 8
    plain = await server.client.post("/v1/rerank", json={"query": QUERY, "documents": PASSAGES, "top_n": 100})
    assert [set(item) for item in plain.json()["results"]] == [{"index", "relevance_score"}] * 12


async def test_texts_are_answered_as_text_embeddings_inference_does(server: Server, model: Model) -> None:
    expected = alone(model, QUERY, PASSAGES)
    response = await server.client.post("/rerank", json={"query": QUERY, "texts": PASSAGES, "raw_scores": True})
    listed = response.json()
    assert [item["index"] for item in listed] == list(np.argsort(-expected))
    assert np.allclose([item["score"] for item in listed], np.sort(expected)[::-1], atol=1e-4)
    with_text = (
        await server.client.post("/rerank", json={"query": QUERY, "texts": PASSAGES, "return_text": True})
    ).json()
    assert [item["text"] for item in with_text] == [PASSAGES[item["index"]] for item in with_text]
    assert all(0 < item["score"] < 1 for item in with_text)
    for truncate, status in ((True, 200), (False, 400), ("START", 200), (None, 400)):
        body = {"query": QUERY, "texts": [LONG], "truncate": truncate}
        assert (await server.client.post("/rerank", json=body)).status_code == status


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ({}, "send the texts to rank"),
        ({"documents": ["w1"], "texts": ["w1"]}, "not as both"),
        ({"documents": None}, "send the texts to rank"),
        ({"documents": []}, "documents is empty"),
        ({"texts": []}, "texts is empty"),
        ({"documents": ["w1", ""]}, "documents 1 is empty"),
        ({"documents": [{"text": "w1", "image": "x"}]}, "this model reads texts only"),
        ({"documents": ["w1"], "top_n": 0}, "top_n is 0"),
        ({"documents": ["w1"], "top_n": -(10**30)}, "top_n is -1"),
        ({"documents": ["w1"], "query": ""}, "query is empty"),
        ({"texts": [{"text": "w1"}]}, "Expected `str`"),
    ],
)
async def test_bad_rerank_requests_are_refused(server: Server, body: dict[str, Any], words: str) -> None:
    response = await server.post("/v1/rerank", **({"query": "w1"} | body))
    assert response.status_code == 400
    assert words in response.json()["message"]


async def test_a_route_that_is_not_for_this_model_names_those_that_are(server: Server) -> None:
    response = await server.embed()
    assert response.status_code == 404
    assert "/v1/embeddings is not for this model, whose task is rerank; use /v1/ranking" in response.json()["message"]


@pytest.mark.parametrize("bad", [np.nan, np.inf])
async def test_scores_that_are_not_finite_are_a_500_and_never_an_answer(model: Model, bad: float) -> None:
    def infer(inputs: Inputs) -> NDArray[np.float32]:
        return np.full((len(inputs["input_ids"]), 1), bad, np.float32)

    async with serving(model, infer=infer) as server:
        response = await server.post("/v1/ranking", query=QUERY, passages=["w1"])
        assert response.status_code == 500
        assert response.json()["type"] == "internal_error"


async def test_scores_of_zero_and_far_from_zero_are_served(model: Model) -> None:
    def infer(inputs: Inputs) -> NDArray[np.float32]:
        return np.array([[0.0], [-3e38], [3e38]], np.float32)[: len(inputs["input_ids"])]

    async with serving(model, infer=infer) as server:
        body = (await server.post("/v1/rerank", query=QUERY, documents=["w1", "w2", "w3"])).json()
        assert {item["index"]: item["relevance_score"] for item in body["results"]} == {0: 0.5, 1: 0.0, 2: 1.0}


async def test_a_pairs_score_does_not_depend_on_the_batch_that_it_came_in(model: Model) -> None:
    """200 batches and more: requests of different sizes at once, pairs of all lengths mixed by the batcher."""
    rng = np.random.default_rng(0)
    pool = [" ".join(f"w{n}" for n in rng.integers(0, 96, size)) for size in rng.integers(1, 25, 60)]
    queries = ["w1 w2 w3", "w90", "w5 w6 w7 w8"]
    expected = {query: alone(model, query, pool) for query in queries}
    worst = 0.0
    shapes: list[tuple[int, ...]] = []
    backend = model.backend(ONLY)

    def infer(inputs: Inputs) -> NDArray[np.float32]:
        shapes.append(inputs["input_ids"].shape)
        return backend.infer(inputs)

    async with serving(model, infer=infer, limits=Limits(max_inputs=100), queue=10_000) as server:
        for _ in range(50):
            sent = []
            for _ in range(4):
                query = queries[rng.integers(len(queries))]
                chosen = rng.choice(60, size=rng.integers(1, 30), replace=False)
                sent.append((query, chosen))
            answers = await asyncio.gather(
                *(server.post("/v1/ranking", query=q, passages=[pool[n] for n in chosen]) for q, chosen in sent)
            )
            for (query, chosen), answer in zip(sent, answers, strict=True):
                rankings = answer.json()["rankings"]
                assert sorted(item["index"] for item in rankings) == list(range(len(chosen)))
                for item in rankings:
                    worst = max(worst, abs(item["logit"] - expected[query][chosen[item["index"]]]))
    assert len(shapes) >= 200
    assert len(set(shapes)) >= 60  # of at most 8 x 32
    assert 0 < worst <= 1e-3  # some noise there is: the batches did differ
    assert np.concatenate(list(expected.values())).std() > 0.1
