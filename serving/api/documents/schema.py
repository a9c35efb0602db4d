"""JSON Schema, written and changed in Python."""

from __future__ import annotations

from typing import Any

Schema = dict[str, Any]


def closed(properties: Schema, *optional: str, description: str = "") -> Schema:
    """An object with these properties and no others."""
    about = {"description": description} if description else {}
    return {
        **about,
        "type": "object",
        "properties": properties,
        "required": [name for name in properties if name not in optional],
        "additionalProperties": False,
    }


def ref(name: str) -> Schema:
    """A form that the document lists by name."""
    return {"$ref": f"#/components/schemas/{name}"}


def branch(schema: Schema, kind: str) -> Schema:
    """The part of a schema that is for one JSON type."""
    parts: list[Schema] = schema.get("anyOf", [schema])
    return next(part for part in parts if part.get("type") == kind)
