"""POST /v1/embeddings: the wire's form of a request and an answer, for models of texts and of texts and pictures."""

from __future__ import annotations

import asyncio
from typing import Annotated, Any, Literal

import msgspec
import numpy as np
import orjson
import pybase64
from msgspec import Meta
from numpy.typing import NDArray

from serving.api.errors import invalid
from serving.api.requests import ModelName, Truncation, as_list, check_model, check_texts, decode
from serving.api.state import Call, Response, Service
from serving.batching.lanes import Lane, Timing
from serving.tasks import clip, embed
from serving.tasks.base import ONLY
from serving.tasks.images import BadImage, is_data_uri, parse_data_uri
from serving.tasks.text import InputType, TextTooLong, TextWithoutTokens, Truncate
from serving.tasks.vectors import check_vectors, quantize, shorten

_LARGE = 32_768  # numbers; more are written in a thread, so that the event loop stays free
MAX_IMAGES = 128  # of one request: each is 0.6 MB once it is decoded

Encoding = Literal["float", "base64"]
EmbeddingType = Literal["float", "int8", "uint8", "binary", "ubinary"]
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


async def embeddings(call: Call, service: Service) -> Response:
    """Texts, and pictures where the model sees them -> vectors. Raises Problem and what errors.problem knows."""
    request = decode(_DECODER, call.body)
    inputs = as_list(request.input)
    check_texts(inputs, call.limits.max_inputs, "input")
    named = check_model(request.model, service)
    kind = _embedding_type(request, service)
    dimensions = _dimensions(request, service)
    if isinstance(service.spec, clip.ClipSpec):
        vectors, usage = await _mixed(request, inputs, service, call.timing)
    else:
        vectors, usage = await _texts(request, inputs, service, named, call.timing)
    answer = (vectors, dimensions, kind, request.encoding_format == "base64", service, usage)
    body = await asyncio.to_thread(dump, *answer) if vectors.size > _LARGE else dump(*answer)
    return Response(body=body, num_tokens=usage["prompt_tokens"], num_items=len(inputs))


async def _texts(
    request: EmbeddingRequest, texts: list[str], service: Service, named: InputType | None, timing: Timing
) -> tuple[NDArray[np.float32], dict[str, int]]:
    _check_modality(request, ["text"] * len(texts))
    input_type = _input_type(request, service, named)
    lane = service.lanes[ONLY]
    lane.refuse_if_full(len(texts))  # before the work of tokenising
    truncate = request.truncate or "NONE"
    items, vectors = await lane.encode(
        service.encoders, lambda encoder: encoder.encode(texts, truncate=truncate, input_type=input_type), timing
    )
    check_vectors(vectors, len(items), lane.tower.dimension)
    num_tokens = sum(item.size for item in items)
    return vectors, {"prompt_tokens": num_tokens, "total_tokens": num_tokens}


async def _mixed(
    request: EmbeddingRequest, inputs: list[str], service: Service, timing: Timing
) -> tuple[NDArray[np.float32], dict[str, int]]:
    """Captions and pictures in any order, each to its own engine; the answer keeps the order."""
    seen = [n for n, entry in enumerate(inputs) if is_data_uri(entry)]
    read = [n for n, entry in enumerate(inputs) if not is_data_uri(entry)]
    _check_modality(request, ["image" if is_data_uri(entry) else "text" for entry in inputs])
    if len(seen) > MAX_IMAGES:
        raise invalid(
            f"input holds {len(seen)} pictures, at most {MAX_IMAGES} are taken; send several requests", "input"
        )
    lanes = service.lanes
    if read:
        lanes[clip.TEXT].refuse_if_full(len(read))
    if seen:
        lanes[clip.IMAGE].refuse_if_full(len(seen))
    truncate: Truncate = request.truncate or "NONE"

    def items_of(encoder: clip.Encoder) -> tuple[list[NDArray[np.int64]], list[NDArray[np.float32]]]:
        try:
            tokens = encoder.encode_texts([inputs[n] for n in read], truncate=truncate) if read else []
        except TextTooLong as error:
            raise error.at(read[error.index]) from error
        except TextWithoutTokens as error:
            raise TextWithoutTokens(read[error.index]) from error
        files = []
        for n in seen:
            try:
                files.append(parse_data_uri(inputs[n]))
            except BadImage as error:
                raise BadImage(error.why, n) from error
        try:
            return tokens, encoder.encode_images(files)
        except BadImage as error:
            raise BadImage(error.why, seen[error.index]) from error

    tokens, pixels = await service.encoders.run(items_of)
    vectors = np.empty((len(inputs), service.spec.towers[0].dimension), dtype=np.float32)
    async with asyncio.TaskGroup() as both:
        work = [
            (positions, both.create_task(_submit(lanes[name], items, timing)))
            for name, positions, items in ((clip.TEXT, read, tokens), (clip.IMAGE, seen, pixels))
            if positions
        ]
    for positions, task in work:
        vectors[positions] = task.result()
    num_tokens = sum(item.size for item in tokens)
    usage = {
        "num_images": len(seen),
        "prompt_tokens": num_tokens,
        "completion_tokens": 0,
        "total_tokens": num_tokens,
    }
    return vectors, usage


async def _submit(lane: Lane, items: list[Any], timing: Timing) -> NDArray[np.float32]:
    vectors = await lane.submit(items, timing)
    check_vectors(vectors, len(items), lane.tower.dimension)
    return vectors


def dump(
    vectors: NDArray[np.float32],
    dimensions: int,
    kind: EmbeddingType,
    as_base64: bool,
    service: Service,
    usage: dict[str, int],
) -> bytes:
    """(N, D) -> the answer's JSON; base64 is of the numbers' own bytes, little-endian."""
    if kind == "float":
        rows: NDArray[Any] = shorten(vectors, dimensions).astype("<f4", copy=False)
    else:  # cut only: made longer again, components would leave int8's range
        int8_range = service.spec.int8_range if isinstance(service.spec, embed.EmbedSpec) else 0.0
        rows = quantize(vectors[:, :dimensions], kind, int8_range)
    rows = np.ascontiguousarray(rows)
    written = (pybase64.b64encode_as_string(row.tobytes()) for row in rows) if as_base64 else rows
    data = [{"object": "embedding", "index": index, "embedding": row} for index, row in enumerate(written)]
    answer = {"object": "list", "data": data, "model": service.names[0], "usage": usage}
    return orjson.dumps(answer, option=orjson.OPT_SERIALIZE_NUMPY)


def _input_type(request: EmbeddingRequest, service: Service, named: InputType | None) -> InputType | None:
    """From the field or the model name's suffix, which is how clients without the field say it."""
    spec, given = service.spec, request.input_type or named
    if given is None and isinstance(spec, embed.EmbedSpec) and (spec.query_prefix or spec.passage_prefix):
        raise invalid("input_type is missing: this model embeds a 'query' and a 'passage' differently", "input_type")
    return given


def _check_modality(request: EmbeddingRequest, found: list[Modality]) -> None:
    """Refuse a modality that the input has not: it is only ever inferred."""
    given = request.modality
    if given is None:
        return
    named = given if isinstance(given, list) else [given]
    named = named * len(found) if len(named) == 1 else named
    if len(named) != len(found):
        raise invalid(f"modality names {len(named)} entries, input has {len(found)}; leave modality out", "modality")
    for index, (name, is_a) in enumerate(zip(named, found, strict=True)):
        if name != is_a:
            what = "a picture" if is_a == "image" else "a text"
            raise invalid(f"modality says {name!r} of input {index}, which is {what}; leave modality out", "modality")


def _dimensions(request: EmbeddingRequest, service: Service) -> int:
    """How long the vectors are to be: at most D, and shorter only where the model was trained for it."""
    full = service.spec.towers[0].dimension
    if request.dimensions is None or request.dimensions == full:
        return full
    if request.dimensions < 1:
        raise invalid(
            f"dimensions is {request.dimensions}; this model gives {full}, and no vector has less than 1", "dimensions"
        )
    if not (isinstance(service.spec, embed.EmbedSpec) and service.spec.matryoshka_dimensions):
        raise invalid(f"dimensions is {request.dimensions}, this model gives {full}; leave it out", "dimensions")
    return min(request.dimensions, full)


def _embedding_type(request: EmbeddingRequest, service: Service) -> EmbeddingType:
    given = request.embedding_type
    if given is None:
        return "float"
    kinds: list[EmbeddingType] = given if isinstance(given, list) else [given]
    if len(kinds) != 1:
        raise invalid(f"embedding_type names {len(kinds)} types; one request gives one", "embedding_type")
    (kind,) = kinds
    spec = service.spec
    if kind in ("int8", "uint8") and not (isinstance(spec, embed.EmbedSpec) and spec.int8_range):
        raise invalid(
            f"embedding_type {kind!r} is not served by this model; float, binary and ubinary are", "embedding_type"
        )
    return kind
