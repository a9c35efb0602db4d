"""Results on a terminal: titles, tables, what went wrong and checks, at any width."""

from __future__ import annotations

import io

import msgspec
import pytest
from rich.console import Console

from benchmarks.report import console
from benchmarks.report.results import Check, Table
from tests.support.results import cells, figures, results

CHECK = Check(name="a goal", value="1 of [/b]", required="2", passed=False)


@pytest.mark.parametrize("width", [60, 200])
def test_cells_are_shown_with_what_went_wrong(width: int) -> None:
    ours, *_ = cells(figures(333), figures(100), figures(400))
    broken = msgspec.structs.replace(ours.figures, statuses={"200": 9, "503": 1}, num_wrong=2)
    cell = msgspec.structs.replace(ours, figures=broken, bound="The engine: busy 95% of the time.")
    output = io.StringIO()
    shown = results(cell, checks=(CHECK,), notes=("status 422: [/loc]",))
    console.show(shown, Console(file=output, width=width, markup=False, highlight=False))
    text = " ".join(output.getvalue().split())
    for words in (
        "query-20: texts",
        "1 at a time",
        "333",
        "statuses {'503': 1}, 2 wrong answers",
        "The engine: busy 95%",
        "✗ a goal: 1 of [/b]",
        "status 422: [/loc]",
    ):
        assert words in text, words


def test_findings_are_shown_with_what_was_required(capsys: pytest.CaptureFixture[str]) -> None:
    table = Table(title="Padding", columns=("", "share"), rows=(("[/a server]", "9.9%"),), note="a note")
    console.show_findings([table], [CHECK], ["[/a] note"])
    lines = [" ".join(line.split()) for line in capsys.readouterr().out.splitlines() if line.strip()]
    assert lines == [
        "Padding", "share", "[/a server] 9.9%", "(a note)", "✗ a goal: 1 of [/b] (wanted: 2)", "[/a] note",
    ]  # fmt: skip
