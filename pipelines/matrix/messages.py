"""Tell a breach of the matrix's form in words: place, what is wrong, and the remedy that the JSON Schema describes."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from typing import Any

from pipelines.matrix.strict_yaml import Place


def explain(detail: Any, schema: dict[str, Any]) -> tuple[Place, str]:
    """One of pydantic's errors as a place and a sentence with its remedy."""
    loc, kind = tuple(detail["loc"]), detail["type"]
    if kind in ("extra_forbidden", "missing"):
        parent = _node(schema, loc[:-1])
        keys = parent.get("properties", {})
        if kind == "missing":
            return loc[:-1], f"'{loc[-1]}' is missing; give {_node(schema, loc).get('description')}"
        near = nearest(str(loc[-1]), keys)
        return loc, f"unknown key; did you mean '{near}'?" if near else f"unknown key; the keys here are {join(keys)}"
    names = _node(schema, loc[:-2]).get("propertyNames")
    if loc[-1] == "[key]" and names is not None:
        return loc[:-1], f"{loc[-2]!r} is not {names['description']}"
    node = _node(schema, loc)
    got = detail["input"]
    if "enum" in node:
        near = nearest(got, node["enum"]) if isinstance(got, str) else None
        remedy = f"; did you mean '{near}'?" if near else ""
        return loc, f"{_show(got)} is not one of {join(node['enum'], 'or')}{remedy}"
    return loc, f"{_show(got)} is not {node.get('description', detail['msg'])}"


def _show(value: object) -> str:
    """What stands in the file, short: text as it is, a short list of texts, or the kind of thing it is."""
    if isinstance(value, str):
        return repr(value)
    if isinstance(value, list) and len(value) <= 4 and all(isinstance(item, str) for item in value):
        return f"[{', '.join(value)}]"
    return "a list" if isinstance(value, list) else "a mapping" if isinstance(value, dict) else "nothing"


def _node(schema: dict[str, Any], loc: Iterable[str | int]) -> dict[str, Any]:
    """The schema of a place, with the description that is nearest to it."""
    node = _resolve(schema, schema)
    for part in loc:
        if isinstance(part, int):
            node = node["items"]
        elif part in node.get("properties", {}):
            node = node["properties"][part]
        elif "patternProperties" in node or "additionalProperties" in node:
            patterns = [*node.get("patternProperties", {}).values(), node.get("additionalProperties")]
            node = next((p for p in patterns if isinstance(p, dict)), {})
        node = _resolve(schema, node)
    return node


def _resolve(schema: dict[str, Any], node: dict[str, Any]) -> dict[str, Any]:
    own = {key: node[key] for key in ("description",) if key in node}
    if "anyOf" in node:
        node = next(option for option in node["anyOf"] if option.get("type") != "null")
    if "$ref" in node:
        node = schema["$defs"][node["$ref"].rsplit("/", 1)[-1]]
    if "const" in node:
        node = {**node, "enum": [node["const"]]}
    return {**node, **own}


def nearest(word: str, candidates: Iterable[str]) -> str | None:
    """The known word that was probably meant."""
    names, word = list(candidates), word.lower()
    close = difflib.get_close_matches(word, names, n=1, cutoff=0.6)
    starts = [name for name in names if word and name.startswith(word)]
    return next(iter(close or starts), None)


def join(words: Iterable[object], conjunction: str = "and") -> str:
    """ "a, b and c"."""
    spelled = [str(word) for word in words]
    return f" {conjunction} ".join([", ".join(spelled[:-1]), spelled[-1]] if len(spelled) > 1 else spelled)
