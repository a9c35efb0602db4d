"""Texts and pictures in any order -> vectors of one space: the routes of the task clip."""

from __future__ import annotations

import asyncio
from typing import Any

import numpy as np
from numpy.typing import NDArray

from serving.api.documents.schema import Schema
from serving.api.errors import invalid
from serving.api.routes.base import TaskRoutes
from serving.api.routes.embeddings import (
    Answer,
    EmbeddingRequest,
    Modality,
    check_modality,
    embeddings,
    narrow,
    post,
)
from serving.api.routes.vectors import VectorForms
from serving.api.state import Call, Response, Service
from serving.batching.lanes import Lane, Timing
from serving.tasks.clip import IMAGE, TEXT, ClipSpec, Encoder
from serving.tasks.images import BadImage, is_data_uri, parse_data_uri
from serving.tasks.text import InputType, TextTooLong, TextWithoutTokens, Truncate
from serving.tasks.vectors import check_vectors

MAX_IMAGES = 128  # of one request: each is 0.6 MB once it is decoded
_PIXEL = (
    "data:image/png;base64,iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAAAAAA6fptVAAAACklEQVR4nGP4DwABAQEAsTp8WgAAAABJRU5ErkJggg=="
)


async def _answer(call: Call, service: Service[ClipSpec]) -> Response:
    """Each entry goes to its own engine; the answer keeps the order."""
    lanes, dimension, timing = service.lanes, service.spec.dimension, call.timing

    async def vectors_of(request: EmbeddingRequest, inputs: list[str], named: InputType | None) -> Answer:
        kinds: list[Modality] = ["image" if is_data_uri(entry) else "text" for entry in inputs]
        texts = [n for n, kind in enumerate(kinds) if kind == "text"]
        pictures = [n for n, kind in enumerate(kinds) if kind == "image"]
        check_modality(request.modality, kinds)
        if len(pictures) > MAX_IMAGES:
            message = f"input holds {len(pictures)} pictures, at most {MAX_IMAGES} are taken; send several requests"
            raise invalid(message, "input")
        for name, places in ((TEXT, texts), (IMAGE, pictures)):
            if places:
                lanes[name].refuse_if_full(len(places))
        truncate: Truncate = request.truncate or "NONE"
        tokens, pixels = await service.encoders.run(
            lambda encoder: (_tokens(encoder, inputs, texts, truncate), _pixels(encoder, inputs, pictures))
        )
        vectors = np.empty((len(inputs), dimension), dtype=np.float32)
        async with asyncio.TaskGroup() as both:
            work = [
                (places, both.create_task(_rows(lanes[name], items, dimension, timing)))
                for name, places, items in ((TEXT, texts, tokens), (IMAGE, pictures, pixels))
                if places
            ]
        for places, rows in work:
            vectors[places] = rows.result()
        num_tokens = sum(item.size for item in tokens)
        usage = {
            "num_images": len(pictures),
            "prompt_tokens": num_tokens,
            "completion_tokens": 0,
            "total_tokens": num_tokens,
        }
        return Answer(vectors, usage)

    return await embeddings(call, service, VectorForms(dimension=dimension), {}, vectors_of)


def _tokens(encoder: Encoder, inputs: list[str], places: list[int], truncate: Truncate) -> list[NDArray[np.int64]]:
    """Of the texts among the entries. An error names the place among all entries."""
    if not places:
        return []
    try:
        return encoder.encode_texts([inputs[n] for n in places], truncate=truncate)
    except TextTooLong as error:
        raise error.at(places[error.index]) from error
    except TextWithoutTokens as error:
        raise TextWithoutTokens(places[error.index]) from error


def _pixels(encoder: Encoder, inputs: list[str], places: list[int]) -> list[NDArray[np.float32]]:
    """Of the pictures among the entries. An error names the place among all entries."""
    files = []
    for n in places:
        try:
            files.append(parse_data_uri(inputs[n]))
        except BadImage as error:
            raise BadImage(error.why, n) from error
    try:
        return encoder.encode_images(files)
    except BadImage as error:
        raise BadImage(error.why, places[error.index]) from error


async def _rows(lane: Lane, items: list[Any], dimension: int, timing: Timing) -> NDArray[np.float32]:
    vectors = await lane.submit(items, timing)
    check_vectors(vectors, len(items), dimension)
    return vectors


def _narrow(schema: Schema, spec: ClipSpec | None) -> None:
    if spec is not None:
        narrow(schema, VectorForms(dimension=spec.dimension), ["text", "image"])
        schema["properties"]["input"]["description"] += (
            " data:image/png;base64,… (or jpeg, webp) is a picture; no address is ever fetched. "
            f"At most {MAX_IMAGES} entries are pictures."
        )


def _example(model: str) -> Schema:
    return {"model": model, "input": ["a red circle", _PIXEL]}


ROUTES = TaskRoutes(posts=(post(_answer, _narrow, _example),))
