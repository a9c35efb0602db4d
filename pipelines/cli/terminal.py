"""What a terminal that is not UTF-8 shows: the nearest plain letters, never an error that ends a build."""

from __future__ import annotations

import codecs
import io
from collections.abc import Iterable
from typing import TextIO

PLAIN = {"✓": "+", "✗": "x", "×": "x", "…": "...", "–": "-", "·": "-", "→": "->", "≥": ">=", "≤": "<=", "’": "'"}
HANDLER = "enginery.plain"


def plain(error: UnicodeError) -> tuple[str, int]:
    """A codec error handler: what cannot be encoded, in plain letters; '?' for what has none."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    return "".join(PLAIN.get(letter, "?") for letter in error.object[error.start : error.end]), error.end


def prepare(streams: Iterable[TextIO]) -> None:
    """Let these streams print any text, whatever their encoding is."""
    codecs.register_error(HANDLER, plain)
    for stream in streams:
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors=HANDLER)
