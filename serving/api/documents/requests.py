"""The form of every request as JSON Schema: the structs that routes decode, with what the served model adds to them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import msgspec

from serving.api.documents.schema import Schema, branch
from serving.api.routes.base import Post
from serving.api.routes.requests import accepted_names
from serving.api.routes.table import ROUTES, posts_of
from serving.api.state import Call
from serving.tasks.base import Spec


class Facts(NamedTuple):
    """What the document depends on."""

    spec: Spec | None  # None: nothing is loaded yet, so every route is described
    names: tuple[str, ...]  # that requests may use
    max_inputs: int

    @property
    def posts(self) -> Mapping[str, Post[Any]]:
        """path -> each route that answers."""
        return posts_of(self.spec.task if self.spec else None)


def facts_of(call: Call) -> Facts:
    service, max_inputs = call.state.service, call.limits.max_inputs
    if service is None:
        return Facts(None, (), max_inputs)
    return Facts(service.spec, accepted_names(service.names, ROUTES[service.spec.task].endings), max_inputs)


def request_schemas(facts: Facts) -> dict[str, Schema]:
    """By the struct's name."""
    narrowings = {post.request: post.narrow for post in facts.posts.values()}
    _, schemas = msgspec.json.schema_components(list(narrowings), ref_template="#/components/schemas/{name}")
    for struct, narrow in narrowings.items():
        schema = schemas[struct.__name__]
        properties = schema["properties"]
        if facts.names:
            branch(properties["model"], "string")["enum"] = list(facts.names)
        for name in ("input", "passages", "documents", "texts"):
            if name in properties:
                _not_empty(properties[name], facts)
        if "query" in properties:
            branch(properties["query"], "string")["minLength"] = 1
        narrow(schema, facts.spec)
    if "Content" in schemas:
        content = schemas["Content"]["properties"]
        content["text"]["minLength"] = 1
        content["image"] = {"description": content["image"]["description"], "type": "null", "default": None}
    return schemas


def _not_empty(schema: Schema, facts: Facts) -> None:
    """A list of texts, or also a single one."""
    most = f", of at most {facts.spec.max_tokens} tokens each" if facts.spec else ""
    schema["description"] += f" 1 to {facts.max_inputs} entries{most}."
    for part in schema.get("anyOf", [schema]):
        if part.get("type") == "string":
            part["minLength"] = 1
        elif part.get("type") == "array":
            part |= {"minItems": 1, "maxItems": facts.max_inputs}
            for entry in part["items"].get("anyOf", [part["items"]]):
                if entry.get("type") == "string":
                    entry["minLength"] = 1
