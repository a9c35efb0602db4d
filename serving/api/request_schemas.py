"""The form of every request as JSON Schema: the structs that routes decode, with what the served model adds to them."""

from __future__ import annotations

from typing import Any, NamedTuple, get_args

import msgspec

from serving.api.answer_schemas import Schema
from serving.api.embeddings import MAX_IMAGES, EmbeddingRequest, EmbeddingType
from serving.api.ranking import RankingRequest, RerankRequest
from serving.api.requests import accepted_names
from serving.api.state import Call
from serving.tasks.embed import EmbedSpec

STRUCTS: dict[str | None, list[Any]] = {  # task -> of its routes
    "embed": [EmbeddingRequest],
    "clip": [EmbeddingRequest],
    "rerank": [RankingRequest, RerankRequest],
    None: [EmbeddingRequest, RankingRequest, RerankRequest],
}


class Facts(NamedTuple):
    """What the document depends on. task None: nothing is loaded yet, so every route is described."""

    task: str | None
    names: tuple[str, ...]  # that requests may use
    dimension: int
    any_dimension: bool
    kinds: tuple[str, ...]  # of embedding_type
    max_tokens: int
    max_inputs: int


def facts_of(call: Call) -> Facts:
    service, max_inputs = call.state.service, call.limits.max_inputs
    if service is None:
        return Facts(None, (), 0, True, get_args(EmbeddingType), 0, max_inputs)
    spec = service.spec
    has_int8 = isinstance(spec, EmbedSpec) and spec.int8_range > 0
    return Facts(
        task=spec.task,
        names=accepted_names(service),
        dimension=spec.towers[0].dimension,
        any_dimension=isinstance(spec, EmbedSpec) and bool(spec.matryoshka_dimensions),
        kinds=tuple(kind for kind in get_args(EmbeddingType) if has_int8 or kind not in ("int8", "uint8")),
        max_tokens=spec.max_tokens,
        max_inputs=max_inputs,
    )


def request_schemas(facts: Facts) -> dict[str, Schema]:
    """By the struct's name."""
    _, schemas = msgspec.json.schema_components(STRUCTS[facts.task], ref_template="#/components/schemas/{name}")
    for struct in STRUCTS[facts.task]:
        schema = schemas[struct.__name__]
        properties = schema["properties"]
        if facts.names:
            _branch(properties["model"], "string")["enum"] = list(facts.names)
        for name in ("input", "passages", "documents", "texts"):
            if name in properties:
                _not_empty(properties[name], facts)
        if "query" in properties:
            _branch(properties["query"], "string")["minLength"] = 1
        if struct is EmbeddingRequest:
            _narrow(properties, facts)
        if struct is RerankRequest:
            _branch(properties["top_n"], "integer")["minimum"] = 1
            schema["oneOf"] = [_one_list("documents", "texts"), _one_list("texts", "documents")]
    if "Content" in schemas:
        content = schemas["Content"]["properties"]
        content["text"]["minLength"] = 1
        content["image"] = {"description": content["image"]["description"], "type": "null", "default": None}
    return schemas


def _not_empty(schema: Schema, facts: Facts) -> None:
    """A list of texts, or also a single one."""
    most = f", of at most {facts.max_tokens} tokens each" if facts.max_tokens else ""
    schema["description"] += f" 1 to {facts.max_inputs} entries{most}."
    for branch in schema.get("anyOf", [schema]):
        if branch.get("type") == "string":
            branch["minLength"] = 1
        elif branch.get("type") == "array":
            branch |= {"minItems": 1, "maxItems": facts.max_inputs}
            for entry in branch["items"].get("anyOf", [branch["items"]]):
                if entry.get("type") == "string":
                    entry["minLength"] = 1


def _narrow(properties: Schema, facts: Facts) -> None:
    """To what the model gives."""
    if facts.task is None:
        return
    size = _branch(properties["dimensions"], "integer")
    if facts.any_dimension:
        size["minimum"] = 1
        properties["dimensions"]["description"] += f" From 1 to {facts.dimension}, the default; more means that."
    else:
        size["enum"] = [facts.dimension]
        properties["dimensions"]["description"] += " This model has no choice."
    modalities = ["text", "image"] if facts.task == "clip" else ["text"]
    for name, allowed in (("embedding_type", list(facts.kinds)), ("modality", modalities)):
        for branch in properties[name]["anyOf"]:
            if "enum" in branch:
                branch["enum"] = allowed
            elif branch.get("type") == "array":
                branch["items"]["enum"] = allowed
                branch["minItems"] = 1
    _branch(properties["embedding_type"], "array")["maxItems"] = 1
    if facts.task == "clip":
        properties["input"]["description"] += (
            " data:image/png;base64,… (or jpeg, webp) is a picture; no address is ever fetched. "
            f"At most {MAX_IMAGES} entries are pictures."
        )


def _one_list(name: str, other: str) -> Schema:
    return {"required": [name], "properties": {name: {"type": "array"}, other: {"type": "null"}}}


def _branch(schema: Schema, kind: str) -> Schema:
    """The part of a schema that is for one JSON type."""
    parts: list[Schema] = schema.get("anyOf", [schema])
    return next(part for part in parts if part.get("type") == kind)
