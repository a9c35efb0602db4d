"""YAML in which every scalar is text: no aliases, tags, repeated keys or unbounded nesting. Knows no schema."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

import yaml

from serving.errors import ManifestError

Tree = str | list[Any] | dict[str, Any]  # of Trees

MAX_BYTES = 1024 * 1024  # the NIM operator keeps a manifest in a ConfigMap, which holds no more
MAX_DEPTH = 32
_NULLS = frozenset({"", "~", "null", "Null", "NULL"})  # plain scalars that YAML reads as null
_PLAIN_KEY = re.compile(r"[A-Za-z_][A-Za-z0-9_./-]*")
_NOT_PLAIN = frozenset(("y", "n", "yes", "no", "on", "off", "true", "false", "null"))  # YAML 1.1 reads these as no text
_Loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # libyaml's is ten times faster; both give the same events


def load(data: bytes | str, source: str) -> Tree:
    """Return nested dicts, lists and strings; raises ManifestError.

    Scalars stay as written ('2.0' and 2.0 are the same text), since YAML's own guesses (no, 1e3, 0o7) are what the
    format avoids. The tree is built from parser events, so nothing is ever constructed that was not checked first.
    """
    raw = data.encode("utf-8", "surrogatepass") if isinstance(data, str) else data
    if len(raw) > MAX_BYTES:
        what = f"has {len(raw)} bytes; the limit is {MAX_BYTES}, what a Kubernetes ConfigMap holds: list fewer profiles"
        raise ManifestError(source, [what])
    try:
        return _build(raw.decode("utf-8"), source)
    except UnicodeDecodeError as error:
        raise ManifestError(source, [f"byte {error.start} is not UTF-8; save the file as UTF-8"]) from None
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None) or getattr(error, "context_mark", None)
        where = f"line {mark.line + 1}: " if mark else ""
        raise ManifestError(source, [f"{where}not YAML: {getattr(error, 'problem', None) or error}"]) from None


def dump(tree: Mapping[str, Any]) -> bytes:
    """Block YAML in one spelling, every value a quoted string; the tree is of dicts, of lists of dicts, and of strings.

    PyYAML's own emitter folds long lines and would quote the keys as well.
    """
    return ("\n".join(_lines(tree)) + "\n").encode()


def _lines(tree: Mapping[str, Any]) -> Iterable[str]:
    for key, value in tree.items():
        name = key if _PLAIN_KEY.fullmatch(key) and key.lower() not in _NOT_PLAIN else _quoted(key)
        if isinstance(value, str):
            yield f"{name}: {_quoted(value)}"
        elif isinstance(value, dict):
            yield f"{name}:" if value else f"{name}: {{}}"
            yield from (f"  {line}" for line in _lines(value))
        else:
            yield f"{name}:" if value else f"{name}: []"
            for item in value:
                first, *rest = _lines(item)
                yield f"- {first}"
                yield from (f"  {line}" for line in rest)


def _quoted(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"


def _build(text: str, source: str) -> Tree:
    problems: list[str] = []
    stack: list[tuple[list[Any] | dict[str, Any], list[str]]] = []  # (collection, its pending key)
    roots: list[Tree] = []

    def put(value: Tree, line: int) -> None:
        if not stack:
            roots.append(value)
            return
        collection, pending = stack[-1]
        if isinstance(collection, list):
            collection.append(value)
        elif not pending:
            if not isinstance(value, str):
                raise ManifestError(source, [f"line {line}: a key must be text, not a list or a mapping"])
            pending.append(value)
        else:
            key = pending.pop()
            if key in collection:
                problems.append(f"line {line}: key {key!r} is given twice; YAML readers disagree on which one counts")
            collection[key] = value

    event: Any  # the stubs know neither the events' tags nor that every event has a mark
    for event in yaml.parse(text, Loader=_Loader):
        line = event.start_mark.line + 1
        if isinstance(event, yaml.AliasEvent) or getattr(event, "anchor", None):
            raise ManifestError(source, [f"line {line}: anchors (&) and aliases (*) are not allowed; write it out"])
        if getattr(event, "tag", None):
            raise ManifestError(source, [f"line {line}: the tag {event.tag!r} is not allowed; write plain text"])
        if isinstance(event, yaml.DocumentStartEvent) and roots:
            raise ManifestError(source, [f"line {line}: a second document (---); keep one"])
        if isinstance(event, yaml.CollectionStartEvent):
            if len(stack) >= MAX_DEPTH:
                raise ManifestError(source, [f"line {line}: nested more than {MAX_DEPTH} deep"])
            opened: list[Any] | dict[str, Any] = [] if isinstance(event, yaml.SequenceStartEvent) else {}
            put(opened, line)
            stack.append((opened, []))
        elif isinstance(event, yaml.CollectionEndEvent):
            stack.pop()
        elif isinstance(event, yaml.ScalarEvent):
            if not event.style and event.value in _NULLS:  # plain: None in Python's parser, "" in libyaml's
                problems.append(f"line {line}: a value is missing (null); quote it or drop its key")
            put(event.value, line)
    if not roots:
        problems.append("is empty")
    if problems:
        raise ManifestError(source, problems)
    return roots[0]
