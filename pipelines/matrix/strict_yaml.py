"""Read YAML strictly, each scalar as the text that was written, and remember the line of everything."""

from __future__ import annotations

from collections.abc import Iterator
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
        self.notes: list[str] = []  # messages about what is not wrong
        self._lines: dict[str, int] = {}  # message -> line; a message is told once

    def __len__(self) -> int:
        return len(self._lines)

    def add(self, place: Place, text: str) -> None:
        """Record `text` about the nearest place that the file holds."""
        self._lines.setdefault(self._message(place, text), self._line(place))

    def note(self, place: Place, text: str) -> None:
        """Record what a person should know about a place, and that is no problem."""
        self.notes.append(self._message(place, text))

    def lines(self) -> list[str]:
        return sorted(self._lines, key=self._lines.__getitem__)

    def _message(self, place: Place, text: str) -> str:
        spelled, line = _spell(place), self._line(place)
        return f"{spelled}: {text} (line {line})" if spelled else f"{text} (line {line})"

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
    try:
        events = _Events(yaml.parse(raw.decode("utf-8"), Loader=_LOADER), problems)
        root = events.document()
    except UnicodeDecodeError as error:
        raise Unreadable(f"not YAML: byte {error.start} is not UTF-8; save the file as UTF-8") from None
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = f" (line {mark.line + 1}, column {mark.column + 1})" if mark else ""
        raise Unreadable(f"not YAML: {error.problem or error.context}{where}") from None
    except yaml.YAMLError as error:
        raise Unreadable(f"not YAML: {str(error).splitlines()[0]}") from None
    if not isinstance(root, dict):
        raise Unreadable("is not a mapping; it starts with 'schema_version: 1', then models, skus and build")
    return Document(data=root, unreadable=events.unreadable)


class _Events:
    """Values from the parser's events, which still hold aliases and anchors: composed nodes do not (docs/adr/0012)."""

    def __init__(self, events: Iterator[yaml.Event], problems: Problems) -> None:
        self.unreadable: set[Place] = set()
        self._events = events
        self._problems = problems

    def document(self) -> Any:
        root, num_documents = None, 0
        for event in self._events:
            if isinstance(event, yaml.DocumentStartEvent):
                num_documents += 1
                if num_documents > 1:
                    raise Unreadable(f"holds more than one document; remove the '---' (line {_line(event)})")
            elif isinstance(event, yaml.NodeEvent):
                root = self._value(event, (), is_kept=True)
        return root

    def _value(self, event: yaml.Event, place: Place, *, is_kept: bool) -> Any:
        """The value that begins with this event. Its depth is that of its place."""
        self._problems.line_of.setdefault(place, _line(event))
        if isinstance(event, yaml.AliasEvent):
            self._problems.add(place, f"alias '*{event.anchor}' is not allowed here; write the value out")
            self.unreadable.add(place)
            return None
        self._refuse_extras(event, place)
        if isinstance(event, yaml.ScalarEvent):
            is_plain = event.style in (None, "")  # one spelling per parser
            return None if is_plain and event.value in _NULLS else event.value
        if len(place) >= MAX_DEPTH:
            raise Unreadable(f"is nested deeper than {MAX_DEPTH} levels (line {_line(event)})")
        if isinstance(event, yaml.MappingStartEvent):
            return self._mapping(place, is_kept=is_kept)
        items: list[Any] = []
        while not isinstance(item := next(self._events), yaml.SequenceEndEvent):
            items.append(self._value(item, (*place, len(items)), is_kept=is_kept))
        return items

    def _mapping(self, place: Place, *, is_kept: bool) -> dict[str, Any]:
        """Of a key that is given twice the first value is kept; is_kept: this mapping is no such second value."""
        values: dict[str, Any] = {}
        while not isinstance(key := next(self._events), yaml.MappingEndEvent):
            if not isinstance(key, yaml.ScalarEvent):
                raise Unreadable(f"has a key that is not plain text (line {_line(key)})")
            here = (*place, key.value)
            self._refuse_extras(key, here)
            is_repeated = key.value in values
            if is_repeated and is_kept:
                lines = f"lines {self._problems.line_of[here]} and {_line(key)}"
                self._problems.add(place, f"key '{key.value}' is given twice, on {lines}; keep one of them")
            self._problems.line_of.setdefault(here, _line(key))
            value = self._value(next(self._events), here, is_kept=is_kept and not is_repeated)
            values.setdefault(key.value, value)
        return values

    def _refuse_extras(self, event: yaml.Event, place: Place) -> None:
        if anchor := getattr(event, "anchor", None):
            self._problems.add(place, f"anchor '&{anchor}' is not allowed here; write the value out")
        tag = getattr(event, "tag", None)
        if tag and tag != "!":  # "!" alone is how the parser says "quoted"
            self._problems.add(place, f"tag '{tag}' is not allowed here; remove it")


def _line(event: yaml.Event) -> int:
    return event.start_mark.line + 1 if event.start_mark else 1
