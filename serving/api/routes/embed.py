"""Texts -> vectors: the routes of the task embed."""

from __future__ import annotations

from collections.abc import Mapping

from serving.api.documents.schema import Schema
from serving.api.errors import invalid
from serving.api.routes.base import TaskRoutes
from serving.api.routes.embeddings import Answer, EmbeddingRequest, check_modality, embeddings, narrow, post
from serving.api.routes.vectors import VectorForms
from serving.api.state import Call, Response, Service
from serving.tasks.base import ONLY
from serving.tasks.embed import EmbedSpec
from serving.tasks.text import InputType
from serving.tasks.vectors import check_vectors

ENDINGS: Mapping[str, InputType] = {"-query": "query", "-passage": "passage"}


async def _answer(call: Call, service: Service[EmbedSpec]) -> Response:
    spec = service.spec

    async def vectors_of(request: EmbeddingRequest, texts: list[str], named: InputType | None) -> Answer:
        check_modality(request.modality, ["text"] * len(texts))
        input_type = request.input_type or named
        if input_type is None and (spec.query_prefix or spec.passage_prefix):
            message = "input_type is missing: this model embeds a 'query' and a 'passage' differently"
            raise invalid(message, "input_type")
        lane = service.lanes[ONLY]
        lane.refuse_if_full(len(texts))  # before the work of tokenising
        truncate = request.truncate or "NONE"
        items, vectors = await lane.encode(
            service.encoders,
            lambda encoder: encoder.encode(texts, truncate=truncate, input_type=input_type),
            call.timing,
        )
        check_vectors(vectors, len(items), spec.dimension)
        num_tokens = sum(item.size for item in items)
        return Answer(vectors, {"prompt_tokens": num_tokens, "total_tokens": num_tokens})

    return await embeddings(call, service, _forms(spec), ENDINGS, vectors_of)


def _forms(spec: EmbedSpec) -> VectorForms:
    return VectorForms(
        dimension=spec.dimension, any_dimension=bool(spec.matryoshka_dimensions), int8_range=spec.int8_range
    )


def _narrow(schema: Schema, spec: EmbedSpec | None) -> None:
    if spec is not None:
        narrow(schema, _forms(spec), ["text"])


def _example(model: str) -> Schema:
    return {"model": model, "input": ["Bread is baked.", "An engine is a compiled model."], "input_type": "passage"}


ROUTES = TaskRoutes(posts=(post(_answer, _narrow, _example),), endings=ENDINGS)
