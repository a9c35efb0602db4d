"""Printing never ends a build, whatever letters a terminal has."""

from __future__ import annotations

import io
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
from rich.console import Console

from pipelines.cli import terminal

ROOT = Path(__file__).parents[3]


@pytest.mark.parametrize(
    ("encoding", "expected"),
    [
        ("utf-8", "✓ 2 × l40s … Ж"),
        ("iso-8859-1", "+ 2 × l40s ... ?"),
        ("ascii", "+ 2 x l40s ... ?"),
    ],
)
def test_a_terminal_shows_the_nearest_letters_that_it_has(encoding: str, expected: str) -> None:
    raw = io.BytesIO()
    stream = io.TextIOWrapper(raw, encoding=encoding)
    terminal.prepare([stream])
    stream.write("✓ 2 × l40s … Ж")
    stream.flush()
    assert raw.getvalue().decode(encoding) == expected


def test_the_plan_is_printed_under_the_c_locale(tmp_path: Path) -> None:
    environ = {**os.environ, "PYTHONPATH": str(ROOT), "LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    command = [sys.executable, "-m", "pipelines.cli", "plan", "-m", str(ROOT / "sku_matrix.yaml")]
    done = subprocess.run(
        [*command, "--store", str(tmp_path)], env=environ, capture_output=True, cwd=tmp_path, check=False, timeout=120
    )
    assert done.returncode == 0, done.stderr.decode("ascii", "replace")
    assert " x " in done.stdout.decode("ascii")


COLUMNS = ("row", "plan", "time", "")
ROWS = (
    ("all-minilm-l6-v2__rtx-pro-6000-blackwell__fp16__tp1", "skip", "", "needs a worker with rtx-pro-6000-blackwell"),
    ("tiny__l4__fp16__tp1", "build", "10.0 s", ""),
    ("tiny__cpu-amx__bf16__tp1", "skip", "1.5 s", "needs a worker with cpu-amx (this CPU lacks amx_bf16, amx_int8)"),
)


def printed(width: int | None, columns: Sequence[str] = COLUMNS, rows: Sequence[Sequence[str]] = ROWS) -> list[str]:
    """What a terminal of that width shows; None: a pipe."""
    text = io.StringIO()
    if width is None:
        console = terminal.screen(text)
    else:
        console = Console(file=text, force_terminal=True, color_system=None, width=width, highlight=False)
    terminal.print_table(console, columns, rows)
    return text.getvalue().splitlines()


@pytest.mark.parametrize("width", [60, 80, 120, 200])
def test_a_table_keeps_to_the_terminals_width_and_no_name_is_broken(width: int) -> None:
    lines = printed(width)
    assert max(map(len, lines)) <= width
    for name, *_ in ROWS:
        assert sum(name in line for line in lines) == 1
    words = " ".join(" ".join(lines).split())
    assert "this CPU lacks amx_bf16, amx_int8" in words


def test_where_there_is_room_a_row_is_a_line_and_numbers_stand_to_the_right() -> None:
    head, _, second, third = printed(200)
    assert head.index("time") + len("time") == second.index("10.0 s") + len("10.0 s") == third.index("1.5 s") + 5


def test_in_a_narrow_terminal_a_name_stands_above_the_rest_of_its_row() -> None:
    lines = printed(80)
    assert lines[0] == "row"
    assert lines[lines.index("tiny__l4__fp16__tp1") + 1].split() == ["build", "10.0", "s"]


def test_a_long_last_cell_is_wrapped_in_its_column() -> None:
    rows = (("a100-pcie-40gb", "rtx", "tiny__cpu-avx2__fp32__tp1 (on the CPU: no engine is for this GPU)"),)
    head, first, second = printed(70, ("SKU", "image", "chosen profile"), rows)
    start = head.index("chosen")
    assert (first[start:] + second[start:]).split() == rows[0][2].split()
    assert second[:start].strip() == ""


def test_in_a_pipe_a_row_is_one_line_without_blanks_behind_it() -> None:
    lines = printed(None)
    assert len(lines) == 1 + len(ROWS)
    assert [line.split()[0] for line in lines[1:]] == [name for name, *_ in ROWS]
    assert lines == [line.rstrip() for line in lines]


def test_lines_are_wrapped_at_words_below_themselves_and_not_at_all_in_a_pipe() -> None:
    line = f"  - {'a' * 64} (tiny__l4__fp16__tp1): was compiled for another machine than this"
    text, pipe = io.StringIO(), io.StringIO()
    terminal.print_lines(Console(file=text, force_terminal=True, color_system=None, width=80), [line, "", "next"])
    assert text.getvalue().splitlines() == [
        f"  - {'a' * 64}",
        "      (tiny__l4__fp16__tp1): was compiled for another machine than this",
        "",
        "next",
    ]
    terminal.print_lines(
        Console(file=text, force_terminal=True, color_system=None, width=60), [f"  release {'b' * 64}"]
    )
    assert text.getvalue().splitlines()[-1].strip() == "b" * 64  # what has no blank is not broken
    terminal.print_lines(terminal.screen(pipe), [line])
    assert pipe.getvalue() == line + "\n"


def test_what_looks_like_markup_is_shown_as_it_is() -> None:
    text = io.StringIO()
    terminal.print_lines(terminal.screen(text), ["[26b9:10de] [red] :smile:"])
    terminal.print_table(terminal.screen(text), ("[a]", "b"), [("[red]", ":smile:")])
    assert text.getvalue().split() == ["[26b9:10de]", "[red]", ":smile:", "[a]", "b", "[red]", ":smile:"]
