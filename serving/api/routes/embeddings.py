"""POST /v1/embeddings as every task of vectors shares it: the request's form, and the way from it to the answer."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from functools import partial
from typing import Annotated, Any, Literal, NamedTuple

import msgspec
import numpy as np
from msgspec import Meta
from numpy.typing import NDArray

from serving.api.documents.schema import Schema, branch, ref
from serving.api.errors import invalid
from serving.api.routes.base import Post
from serving.api.routes.requests import ModelName, Truncation, as_list, check_model, check_texts, decode
from serving.api.routes.vectors import EmbeddingType, VectorForms, dump
from serving.api.state import Call, Response, Service
from serving.tasks.base import SpecT
from serving.tasks.text import InputType

_LARGE = 32_768  # numbers; more are written in a thread, so that the event loop stays free

Encoding = Literal["float", "base64"]
Modality = Literal["text", "image", "text_image"]


class EmbeddingRequest(msgspec.Struct, frozen=True, kw_only=True):
    """The body of /v1/embeddings. null means the default everywhere; unknown fields are ignored, as is `user`."""

    model: ModelName
    input: Annotated[str | list[str], Meta(description="A text, or a list of texts; the answer keeps their order.")]
    input_type: Annotated[
        InputType | None,
        Meta(
            description="What the texts are, for models that embed queries and passages differently. "
            "The endings -query and -passage of the model's name say the same."
        ),
    ] = None
    modality: Annotated[
        Modality | list[Modality] | None,
        Meta(description="What the entries of input are. It is inferred; one that contradicts input is refused."),
    ] = None
    encoding_format: Annotated[
        Encoding | None,
        Meta(
            description="float (the default): a vector is a list of numbers. "
            "base64: its bytes, little-endian, of float32 or of the embedding_type."
        ),
    ] = None
    truncate: Truncation = None
    dimensions: Annotated[int | None, Meta(description="How long the vectors are to be.")] = None
    embedding_type: Annotated[
        EmbeddingType | list[EmbeddingType] | None,
        Meta(
            description="The type of a vector's numbers, float by default. binary and ubinary hold the signs of eight "
            "components in one number, as sentence-transformers packs them."
        ),
    ] = None


_DECODER = msgspec.json.Decoder(EmbeddingRequest)


class Answer(NamedTuple):
    """What a task gives for the entries of input."""

    vectors: NDArray[np.float32]  # (N, D), in their order
    usage: dict[str, int]


# request, its input as a list, what its model's name says of them
VectorsOf = Callable[[EmbeddingRequest, list[str], InputType | None], Awaitable[Answer]]


async def embeddings(
    call: Call, service: Service[Any], forms: VectorForms, endings: Mapping[str, InputType], vectors_of: VectorsOf
) -> Response:
    """The entries of input -> vectors. Raises Problem and what errors.problem knows.

    endings: of the model's name, by which clients without the field input_type say it.
    """
    request = decode(_DECODER, call.body)
    inputs = as_list(request.input)
    check_texts(inputs, call.limits.max_inputs, "input")
    named = check_model(request.model, service.names, endings)
    kind, dimensions = forms.type(request.embedding_type), forms.dimensions(request.dimensions)
    vectors, usage = await vectors_of(request, inputs, named)
    write = partial(
        dump,
        vectors,
        dimensions=dimensions,
        kind=kind,
        int8_range=forms.int8_range,
        as_base64=request.encoding_format == "base64",
        model=service.names[0],
        usage=usage,
    )
    body = await asyncio.to_thread(write) if vectors.size > _LARGE else write()
    return Response(body=body, num_tokens=usage["prompt_tokens"], num_items=len(inputs))


def check_modality(given: Modality | list[Modality] | None, kinds: list[Modality]) -> None:
    """Refuse a modality that the input has not: it is only ever inferred."""
    if given is None:
        return
    named = given if isinstance(given, list) else [given]
    named = named * len(kinds) if len(named) == 1 else named
    if len(named) != len(kinds):
        raise invalid(f"modality names {len(named)} entries, input has {len(kinds)}; leave modality out", "modality")
    for index, (name, is_a) in enumerate(zip(named, kinds, strict=True)):
        if name != is_a:
            what = "a picture" if is_a == "image" else "a text"
            raise invalid(f"modality says {name!r} of input {index}, which is {what}; leave modality out", "modality")


def post(
    answer: Callable[[Call, Service[SpecT]], Awaitable[Response]],
    narrow: Callable[[Schema, SpecT | None], None],
    example: Callable[[str], Schema],
) -> Post[SpecT]:
    """The route, as one task answers it."""
    return Post(
        path="/v1/embeddings",
        answer=answer,
        operation="embeddings",
        summary="Turn texts or pictures into vectors",
        request=EmbeddingRequest,
        narrow=narrow,
        example=example,
        answers=ref("Embeddings"),
    )


def narrow(schema: Schema, forms: VectorForms, modalities: list[Modality]) -> None:
    """The request's schema to what the model gives."""
    properties = schema["properties"]
    size = branch(properties["dimensions"], "integer")
    if forms.any_dimension:
        size["minimum"] = 1
        properties["dimensions"]["description"] += f" From 1 to {forms.dimension}, the default; more means that."
    else:
        size["enum"] = [forms.dimension]
        properties["dimensions"]["description"] += " This model has no choice."
    for name, allowed in (("embedding_type", list(forms.types)), ("modality", modalities)):
        for part in properties[name]["anyOf"]:
            if "enum" in part:
                part["enum"] = allowed
            elif part.get("type") == "array":
                part["items"]["enum"] = allowed
                part["minItems"] = 1
    branch(properties["embedding_type"], "array")["maxItems"] = 1
