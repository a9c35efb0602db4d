"""POST /v1/ranking as NIM's clients send it, /v1/rerank as Cohere's, Jina's and text-embeddings-inference's do.

The routes of the task rerank.
"""

from __future__ import annotations

from typing import Annotated, Any

import msgspec
import numpy as np
import orjson
from msgspec import Meta
from numpy.typing import NDArray

from serving.api.documents.schema import Schema, branch, ref
from serving.api.errors import invalid, too_long
from serving.api.routes.base import Post, TaskRoutes
from serving.api.routes.requests import ModelName, Truncation, check_model, check_texts, decode
from serving.api.state import Call, Response, Service
from serving.tasks.base import ONLY
from serving.tasks.rerank import RerankSpec
from serving.tasks.text import TextTooLong, TextWithoutTokens, Truncate
from serving.tasks.vectors import check_scores


class Content(msgspec.Struct, frozen=True, kw_only=True):
    """A query, a passage or a document."""

    text: str
    image: Annotated[str | None, Meta(description="For clients that send it: only null is served.")] = None


class RankingRequest(msgspec.Struct, frozen=True, kw_only=True):
    """The body of /v1/ranking. null means the default everywhere; unknown fields are ignored."""

    model: ModelName
    query: Content | str
    passages: Annotated[list[Content | str], Meta(description="What to rank by how well it answers the query.")]
    truncate: Truncation = None


class RerankRequest(msgspec.Struct, frozen=True, kw_only=True):
    """The body of /v1/rerank: `documents` as Cohere and Jina name them, `texts` as text-embeddings-inference does."""

    query: str
    model: ModelName | None = None
    documents: Annotated[
        list[Content | str] | None,
        Meta(description="What to rank; the answer has the form that Cohere's and Jina's has."),
    ] = None
    texts: Annotated[
        list[str] | None,
        Meta(description="The same; the answer has the form that text-embeddings-inference's has."),
    ] = None
    top_n: Annotated[int | None, Meta(description="How many of the best to answer; all by default.")] = None
    return_documents: Annotated[bool | None, Meta(description="Repeat each document in its result.")] = None
    return_text: Annotated[bool | None, Meta(description="The same, beside texts.")] = None
    raw_scores: Annotated[bool | None, Meta(description="Answer logits instead of their sigmoid.")] = None
    truncate: Annotated[
        Truncate | bool | None,
        Meta(description="As for /v1/ranking; true is END, false is NONE."),
    ] = None


_RANKING = msgspec.json.Decoder(RankingRequest)
_RERANK = msgspec.json.Decoder(RerankRequest)


async def ranking(call: Call, service: Service[RerankSpec]) -> Response:
    """A query and passages -> the passages by falling logit. Raises Problem and what errors.problem knows."""
    request = decode(_RANKING, call.body)
    check_model(request.model, service.names)
    query = _text(request.query, "query")
    passages = [_text(passage, "passages", index) for index, passage in enumerate(request.passages)]
    logits, num_tokens = await _score(call, service, query, passages, request.truncate or "NONE", "passages")
    rankings = [{"index": int(n), "logit": logits[n]} for n in _falling(logits)]
    return _response({"rankings": rankings, "usage": _usage(num_tokens)}, num_tokens, len(passages))


async def rerank(call: Call, service: Service[RerankSpec]) -> Response:
    """The same for other clients: the answer has the form of the request's."""
    request = decode(_RERANK, call.body)
    if request.model is not None:
        check_model(request.model, service.names)
    if (request.documents is None) == (request.texts is None):
        raise invalid("send the texts to rank as 'documents', or as 'texts', and not as both", "documents")
    field = "documents" if request.documents is not None else "texts"
    entries: list[Any] = request.documents if request.documents is not None else request.texts or []
    texts = [_text(entry, field, index) for index, entry in enumerate(entries)]
    if request.top_n is not None and request.top_n < 1:
        raise invalid(f"top_n is {request.top_n}; it is 1 or more", "top_n")
    truncate: Truncate = "NONE"
    if request.truncate:
        truncate = "END" if isinstance(request.truncate, bool) else request.truncate
    logits, num_tokens = await _score(call, service, request.query, texts, truncate, field)
    scores = logits if request.raw_scores else _sigmoid(logits)
    order = _falling(logits)[: request.top_n]
    if field == "texts":
        listed = [
            {"index": int(n), "score": scores[n]} | ({"text": texts[n]} if request.return_text else {}) for n in order
        ]
        return _response(listed, num_tokens, len(texts))
    results = [
        {"index": int(n), "relevance_score": scores[n]}
        | ({"document": {"text": texts[n]}} if request.return_documents else {})
        for n in order
    ]
    answer = {"object": "rerank", "model": service.names[0], "results": results, "usage": _usage(num_tokens)}
    return _response(answer, num_tokens, len(texts))


async def _score(
    call: Call, service: Service[RerankSpec], query: str, texts: list[str], truncate: Truncate, field: str
) -> tuple[NDArray[np.float32], int]:
    """Each text's logit, in the order sent, and the tokens of all pairs."""
    if not query:
        raise invalid("query is empty; send some text", "query")
    check_texts(texts, call.limits.max_inputs, field)
    lane = service.lanes[ONLY]
    lane.refuse_if_full(len(texts))  # before the work of tokenising
    try:
        items, scores = await lane.encode(
            service.encoders, lambda encoder: encoder.encode(query, texts, truncate=truncate), call.timing
        )
    except TextTooLong as error:
        raise too_long(error, field, error.index) from error
    except TextWithoutTokens as error:
        raise invalid(
            f"{field} {error.index} holds no token of this model; send some text", field, error.index
        ) from error
    check_scores(scores, len(texts))
    return scores[:, 0], sum(item.shape[-1] for item in items)


def _text(content: Content | str, *loc: str | int) -> str:
    if isinstance(content, str):
        return content
    if content.image is not None:
        raise invalid("this model reads texts only; leave 'image' out", *loc, "image")
    return content.text


def _falling(logits: NDArray[np.float32]) -> NDArray[np.int64]:
    """Best first; of equal ones the first sent."""
    return np.argsort(-logits, kind="stable")


def _sigmoid(logits: NDArray[np.float32]) -> NDArray[np.float32]:
    with np.errstate(over="ignore"):  # of a logit far below zero: 1 / infinity is the right answer
        return np.asarray(1 / (1 + np.exp(-logits.astype(np.float64))), dtype=np.float32)


def _usage(num_tokens: int) -> dict[str, int]:
    return {"prompt_tokens": num_tokens, "total_tokens": num_tokens}


def _response(answer: object, num_tokens: int, num_items: int) -> Response:
    body = orjson.dumps(answer, option=orjson.OPT_SERIALIZE_NUMPY)
    return Response(body=body, num_tokens=num_tokens, num_items=num_items)


def _as_it_is(schema: Schema, spec: RerankSpec | None) -> None:
    """Every model takes the whole form."""


def _narrow(schema: Schema, spec: RerankSpec | None) -> None:
    """What the struct cannot say."""
    branch(schema["properties"]["top_n"], "integer")["minimum"] = 1
    schema["oneOf"] = [_one_list("documents", "texts"), _one_list("texts", "documents")]


def _one_list(name: str, other: str) -> Schema:
    return {"required": [name], "properties": {name: {"type": "array"}, other: {"type": "null"}}}


_QUERY, _TEXTS = "What is an engine?", ["Bread is baked.", "An engine is a compiled model."]
_SCORES = {"oneOf": [ref("RerankResults"), ref("RerankScores")]}
ROUTES = TaskRoutes[RerankSpec](
    posts=(
        Post(
            path="/v1/ranking",
            answer=ranking,
            operation="ranking",
            summary="Rank passages, as NIM does",
            request=RankingRequest,
            narrow=_as_it_is,
            example=lambda model: {
                "model": model,
                "query": {"text": _QUERY},
                "passages": [{"text": text} for text in _TEXTS],
            },
            answers=ref("Rankings"),
        ),
        Post(
            path="/v1/rerank",
            answer=rerank,
            operation="rerank",
            summary="Rank documents, as Cohere and Jina do",
            request=RerankRequest,
            narrow=_narrow,
            example=lambda model: {"model": model, "query": _QUERY, "documents": _TEXTS, "top_n": 1},
            answers=_SCORES,
        ),
        Post(
            path="/rerank",
            answer=rerank,
            operation="rerankTexts",
            summary="The same route, where text-embeddings-inference has it",
            request=RerankRequest,
            narrow=_narrow,
            example=lambda model: {"query": _QUERY, "texts": _TEXTS},
            answers=_SCORES,
        ),
    )
)
