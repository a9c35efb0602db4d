"""What a terminal or a pipe can show: its letters, its width, and tables that fit into it. Knows rich."""

from __future__ import annotations

import codecs
import io
import textwrap
from collections.abc import Iterable, Sequence
from typing import IO, TextIO

from rich.cells import cell_len
from rich.console import Console
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

PLAIN = {"✓": "+", "✗": "x", "×": "x", "…": "...", "–": "-", "·": "-", "→": "->", "≥": ">=", "≤": "<=", "’": "'"}
HANDLER = "enginery.plain"
PIPE_WIDTH = 10_000  # more than any line has
GAP, INDENT = 2, 4
MIN_LAST = 24  # columns; a terminal that leaves less for a table's last column gets each row in two lines


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


def screen(file: IO[str] | None = None) -> Console:
    """Where people read. A terminal's lines are wrapped at words; those of a pipe or a log are as long as they are."""
    console = Console(file=file, highlight=False)
    if not console.is_terminal:
        console.width, console.soft_wrap = PIPE_WIDTH, True
    return console


def print_lines(console: Console, lines: Iterable[str]) -> None:
    """Print lines as they are; what a terminal has no room for goes on below, indented further than its line."""
    for line in "\n".join(lines).split("\n"):
        indent = " " * (len(line) - len(line.lstrip()) + INDENT)
        parts = textwrap.wrap(
            line, console.width, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False
        )
        console.print(Text("\n".join(parts)), soft_wrap=True)


def print_table(
    console: Console, columns: Sequence[str], rows: Sequence[Sequence[str]], styles: Sequence[str] = ()
) -> None:
    """Print rows below their columns' names, numbers to the right; in a pipe a row is one line.

    In a terminal long last cells are wrapped in their column. Where there is no room for that, a row's first cell is
    in a line of its own, above the others. styles: of each row.
    """
    widths = [max(map(cell_len, cells)) for cells in zip(columns, *rows, strict=True)]
    numeric = [all(cell[:1].isdigit() or not cell for cell in cells) for cells in zip(*rows, strict=True)]
    room = console.width - sum(widths[:-1]) - GAP * (len(widths) - 1)
    stacked = room < min(widths[-1], MIN_LAST)
    if stacked:
        room += widths[0] + GAP - INDENT
    widths[-1] = min(widths[-1], max(room, MIN_LAST))
    for cells, style in zip((columns, *rows), ("bold", *(styles or [""] * len(rows))), strict=True):
        line, last = Table.grid(padding=(0, GAP, 0, 0)), max(n for n, cell in enumerate(cells) if cell)
        for n in range(stacked, last + 1):
            is_end = n == last and not numeric[n]  # no blanks behind it
            width = min(widths[n], cell_len(cells[n])) if is_end else widths[n]
            line.add_column(width=width, justify="right" if numeric[n] else "left")
        line.add_row(*(Text(cell) for cell in cells[stacked : last + 1]), style=style)
        if stacked:
            console.print(Text(cells[0], style))
        console.print(Padding(line, (0, 0, 0, INDENT if stacked else 0), expand=False), soft_wrap=False)
