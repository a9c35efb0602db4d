"""POST /v1/embeddings: the wire's form of a request and an answer."""

from __future__ import annotations

import asyncio
import re
from typing import Literal

import msgspec
import numpy as np
import orjson
import pybase64
from numpy.typing import NDArray

from serving.api.errors import Problem, invalid
from serving.api.state import Call, Response, Service
from serving.tasks.embed import InputType, Truncate, check_vectors

_SUFFIXES: dict[str, InputType] = {"-query": "query", "-passage": "passage"}
_LARGE = 32_768  # floats; more are written in a thread, so that the event loop stays free


class EmbeddingRequest(msgspec.Struct, frozen=True, kw_only=True):
    """The body. null means the default everywhere; unknown fields are ignored, as is `user`."""

    model: str
    input: str | list[str]
    input_type: InputType | None = None
    modality: str | list[str] | None = None
    encoding_format: Literal["float", "base64"] | None = None
    truncate: Truncate | None = None
    dimensions: int | None = None
    embedding_type: str | list[str] | None = None


_DECODER = msgspec.json.Decoder(EmbeddingRequest)
_PLACE = re.compile(r" - at `\$\.?(.*)`$")


def parse(body: bytes, max_inputs: int) -> tuple[EmbeddingRequest, list[str]]:
    """The request and its texts. Raises Problem naming the place in the body."""
    try:
        request = _DECODER.decode(body)
    except msgspec.ValidationError as error:
        place = _PLACE.search(str(error))
        raise invalid(_PLACE.sub("", str(error)), *(_loc(place[1]) if place else ())) from error
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise invalid(f"the body is not JSON in UTF-8: {error}", kind="json_invalid") from error
    texts = [request.input] if isinstance(request.input, str) else request.input
    if not texts:
        raise invalid("input is empty; send a text or a list of texts", "input")
    if len(texts) > max_inputs:
        raise invalid(f"input holds {len(texts)} texts, at most {max_inputs} are taken; send several requests", "input")
    for index, text in enumerate(texts):
        if not text:
            raise invalid(f"input {index} is empty; send some text", "input", index)
    if request.modality is not None and set(_list(request.modality)) != {"text"}:
        raise invalid("modality is not served by this model; it takes 'text'", "modality")
    if request.embedding_type is not None and _list(request.embedding_type) != ["float"]:
        raise invalid("embedding_type is not served by this model; it gives 'float'", "embedding_type")
    return request, texts


async def embeddings(call: Call, service: Service) -> Response:
    """Texts -> vectors. Raises Problem and whatever serving.api.errors.problem knows."""
    request, texts = parse(call.body, call.limits.max_inputs)
    input_type = _input_type(request, service)
    if request.dimensions not in (None, service.spec.dimension):
        raise invalid(
            f"dimensions is {request.dimensions}, this model gives {service.spec.dimension}; leave it out", "dimensions"
        )
    service.batcher.refuse_if_full(len(texts))  # before the work of tokenising
    items = await service.encoders.encode(texts, request.truncate or "NONE", input_type)
    vectors = await service.batcher.submit(items)
    check_vectors(vectors, len(texts), service.spec)
    num_tokens = sum(item.size for item in items)
    answer = (vectors, request.encoding_format == "base64", service.names[0], num_tokens)
    body = await asyncio.to_thread(dump, *answer) if vectors.size > _LARGE else dump(*answer)
    return Response(body=body, num_tokens=num_tokens)


def dump(vectors: NDArray[np.float32], as_base64: bool, model: str, num_tokens: int) -> bytes:
    """(N, D) -> the answer's JSON; base64 is of little-endian float32."""
    rows = (pybase64.b64encode_as_string(row.tobytes()) for row in vectors.astype("<f4", copy=False))
    data = [
        {"object": "embedding", "index": index, "embedding": row}
        for index, row in enumerate(rows if as_base64 else vectors)
    ]
    usage = {"prompt_tokens": num_tokens, "total_tokens": num_tokens}
    return orjson.dumps(
        {"object": "list", "data": data, "model": model, "usage": usage}, option=orjson.OPT_SERIALIZE_NUMPY
    )


def _input_type(request: EmbeddingRequest, service: Service) -> InputType | None:
    """From the field or the model name's suffix, which is how clients without the field say it."""
    named: InputType | None = None
    if request.model not in service.names:
        suffix = next((s for s in _SUFFIXES if request.model.removesuffix(s) in service.names), None)
        if suffix is None:
            known = ", ".join(service.names)
            message = f"The model {_shown(request.model)} does not exist here; use {known}"
            raise Problem(404, "model_not_found", message, detail={"loc": ["body", "model"], "msg": message})
        named = _SUFFIXES[suffix]
    given = request.input_type or named
    if given is None and (service.spec.query_prefix or service.spec.passage_prefix):
        raise invalid("input_type is missing: this model embeds a 'query' and a 'passage' differently", "input_type")
    return given


def _shown(name: str) -> str:
    return repr(name if len(name) <= 100 else f"{name[:100]}…")


def _list(value: str | list[str]) -> list[str]:
    return [value] if isinstance(value, str) else value


def _loc(path: str) -> list[str | int]:
    """`input[3]` -> ["input", 3]."""
    return [int(part) if part.isdecimal() else part for part in re.split(r"[.\[\]]+", path) if part and part != "..."]
