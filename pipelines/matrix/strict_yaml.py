"""Read YAML strictly, each scalar as the text that was written, and remember the line of everything."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

MAX_BYTES = 1 << 20
MAX_DEPTH = 32
_LOADER = yaml.CSafeLoader if yaml.__with_libyaml__ else yaml.SafeLoader
_NULLS = {"", "~", "null", "Null", "NULL"}

Place = tuple[str | int, ...]  # ("build", 0, "models")


class Unreadable(Exception):
    """Nothing in the file can be checked until this is mended."""


class Problems:
    """Everything that is wrong, each with its place, told in the file's order."""

    def __init__(self) -> None:
        self.line_of: dict[Place, int] = {}
        self._found: dict[str, int] = {}  # message -> line; a message is told once

    def __len__(self) -> int:
        return len(self._found)

    def add(self, place: Place, text: str) -> None:
        """Record `text` about the nearest place that the file holds."""
        line = self._line(place)
        spelled = _spell(place)
        self._found.setdefault(f"{spelled}: {text} (line {line})" if spelled else f"{text} (line {line})", line)

    def lines(self) -> list[str]:
        return sorted(self._found, key=self._found.__getitem__)

    def _line(self, place: Place) -> int:
        while place and place not in self.line_of:
            place = place[:-1]
        return self.line_of.get(place, 1)


def _spell(place: Place) -> str:
    """("build", 0, "models") -> "build[0].models"."""
    text = ""
    for part in place:
        text += f"[{part}]" if isinstance(part, int) else f".{part}" if text else part
    return text


@dataclass(kw_only=True)
class Document:
    """The file as text in mappings and lists: 8.9 and 27e0 are what was typed, not what YAML makes of them."""

    data: dict[str, Any]
    unreadable: set[Place] = field(default_factory=set)  # a problem is told already; check nothing under it


def read(path: Path, problems: Problems) -> Document:
    """Raises Unreadable for what is no YAML mapping; records duplicate keys, anchors, aliases and tags."""
    try:
        size_bytes = path.stat().st_size
        raw = path.read_bytes() if size_bytes <= MAX_BYTES else b""
    except OSError as error:
        raise Unreadable(f"cannot be read: {error.strerror}; give the path of a sku_matrix.yaml") from None
    if size_bytes > MAX_BYTES:
        raise Unreadable(f"is larger than 1 MiB ({size_bytes} bytes); a matrix names hardware and models only")
    builder = _Builder(problems)
    try:
        text = raw.decode("utf-8")
        for event in yaml.parse(text, Loader=_LOADER):
            builder.take(event)
    except UnicodeDecodeError as error:
        raise Unreadable(f"not YAML: byte {error.start} is not UTF-8; save the file as UTF-8") from None
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = f" (line {mark.line + 1}, column {mark.column + 1})" if mark else ""
        raise Unreadable(f"not YAML: {error.problem or error.context}{where}") from None
    except yaml.YAMLError as error:
        raise Unreadable(f"not YAML: {str(error).splitlines()[0]}") from None
    if not isinstance(builder.root, dict):
        raise Unreadable("is not a mapping; it starts with 'schema_version: 1', then models, skus and build")
    return Document(data=builder.root, unreadable=builder.unreadable)


@dataclass(kw_only=True)
class _Open:
    """A mapping or list whose end is not read yet."""

    place: Place
    value: dict[str, Any] | list[Any]
    key: str | None = None  # of a mapping: read, its value not yet
    discarded: bool = False  # under a duplicate key: read, not kept


class _Builder:
    """Values from parser events, with a stack of its own so that depth costs no recursion."""

    def __init__(self, problems: Problems) -> None:
        self.root: Any = None
        self.unreadable: set[Place] = set()
        self._problems = problems
        self._stack: list[_Open] = []
        self._num_documents = 0

    def take(self, event: yaml.Event) -> None:
        line = event.start_mark.line + 1 if event.start_mark else 1
        if isinstance(event, yaml.DocumentStartEvent):
            self._num_documents += 1
            if self._num_documents > 1:
                raise Unreadable(f"holds more than one document; remove the '---' (line {line})")
        elif isinstance(event, yaml.CollectionEndEvent):
            self._stack.pop()
        elif isinstance(event, yaml.NodeEvent):
            self._take_node(event, line)

    def _take_node(self, event: yaml.NodeEvent, line: int) -> None:
        top = self._stack[-1] if self._stack else None
        if top is not None and isinstance(top.value, dict) and top.key is None:
            self._take_key(event, top, line)
            return
        place = self._place(top)
        if top is None or not (top.discarded or place in self._problems.line_of):
            # A mapping's entry was given the line of its key.
            self._problems.line_of[place] = line
        value: Any = None
        if isinstance(event, yaml.AliasEvent):
            self._problems.add(place, f"alias '*{event.anchor}' is not allowed here; write the value out")
            self.unreadable.add(place)
        else:
            self._refuse_extras(event, place)
            if isinstance(event, yaml.ScalarEvent):
                is_plain = event.style in (None, "")  # one spelling per parser
                value = None if is_plain and event.value in _NULLS else event.value
            else:
                value = {} if isinstance(event, yaml.MappingStartEvent) else []
        discarded = self._keep(top, value)
        if isinstance(event, yaml.CollectionStartEvent):
            if len(self._stack) >= MAX_DEPTH:
                raise Unreadable(f"is nested deeper than {MAX_DEPTH} levels (line {line})")
            self._stack.append(_Open(place=place, value=value, discarded=discarded))

    def _take_key(self, event: yaml.NodeEvent, top: _Open, line: int) -> None:
        if not isinstance(event, yaml.ScalarEvent):
            raise Unreadable(f"has a key that is not plain text (line {line})")
        place = (*top.place, event.value)
        self._refuse_extras(event, place)
        assert isinstance(top.value, dict)
        top.key = event.value
        if event.value not in top.value:
            self._problems.line_of.setdefault(place, line)
        elif not top.discarded:
            first = self._problems.line_of[place]
            self._problems.add(
                top.place, f"key '{event.value}' is given twice, on lines {first} and {line}; keep one of them"
            )

    def _refuse_extras(self, event: yaml.NodeEvent, place: Place) -> None:
        if event.anchor:
            self._problems.add(place, f"anchor '&{event.anchor}' is not allowed here; write the value out")
        tag = getattr(event, "tag", None)
        if tag and tag != "!":  # "!" alone is how the parser says "quoted"
            self._problems.add(place, f"tag '{tag}' is not allowed here; remove it")

    @staticmethod
    def _place(top: _Open | None) -> Place:
        if top is None:
            return ()
        if isinstance(top.value, list):
            return (*top.place, len(top.value))
        assert top.key is not None
        return (*top.place, top.key)

    def _keep(self, top: _Open | None, value: Any) -> bool:
        """Put a value where it belongs; True when it is under a duplicate key and not kept."""
        if top is None:
            self.root = value
            return False
        if isinstance(top.value, list):
            top.value.append(value)
            return top.discarded
        assert top.key is not None
        key, top.key = top.key, None
        if key in top.value:
            return True
        top.value[key] = value
        return top.discarded
