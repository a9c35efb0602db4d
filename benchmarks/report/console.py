"""Results on a terminal: a table per scenario, tables of other figures, checks with their marks."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from rich.console import Console
from rich.table import Table as RichTable

from benchmarks.report.results import Cell, Check, Results, Table
from benchmarks.report.text import ms, number, percent


def show(results: Results, console: Console | None = None) -> None:
    """Every cell and what bounds it."""
    console = console or Console(markup=False, highlight=False)
    for name, words in results.scenarios.items():
        cells = [cell for cell in results.cells if cell.scenario == name]
        if cells:
            console.print(f"{name}: {words}", style="italic")
            console.print(_of_cells(cells))
        for cell in cells:
            others = {status: count for status, count in cell.figures.statuses.items() if status != "200"}
            if others or cell.figures.num_wrong:
                problem = f"statuses {others}, {cell.figures.num_wrong} wrong answers"
                console.print(f"  {cell.load.words}: {problem}", style="red")
            if cell.bound:
                console.print(f"  {cell.load.words}: {cell.bound}", style="dim")
        console.print()
    for check in results.checks:
        console.print(f"{_mark(check)} {check.name}: {check.value}")
    for note in results.notes:
        console.print(f"  {note}", style="red")


def show_findings(
    tables: Iterable[Table], checks: Iterable[Check] = (), notes: Iterable[str] = (), console: Console | None = None
) -> None:
    """Figures that are no cells, each check with what was required, and notes."""
    console = console or Console(markup=False, highlight=False)
    for table in tables:
        shown = _plain()
        for column in table.columns:
            shown.add_column(column)
        for row in table.rows:
            shown.add_row(*row)
        console.print()
        console.print(table.title, style="italic")
        console.print(shown)
        if table.note:
            console.print(f"({table.note})", style="dim")
    console.print()
    for check in checks:
        console.print(f"{_mark(check)} {check.name}: {check.value} (wanted: {check.required})")
    for note in notes:
        console.print(f"  {note}")


def _of_cells(cells: Sequence[Cell]) -> RichTable:
    table = _plain()
    table.add_column("load")
    for column in ("req/s", "items/s", "tokens/s", "P50 ms", "P90", "P95", "P99", "generator"):
        table.add_column(column, justify="right")
    for cell in cells:
        figures = cell.figures
        times = (ms(figures.latency_s.get(f"p{n}")) for n in (50, 90, 95, 99))
        rates = (number(value) for value in (figures.requests_per_s, figures.items_per_s, figures.tokens_per_s))
        table.add_row(cell.load.words, *rates, *times, percent(figures.generator_cpu_share))
    return table


def _plain() -> RichTable:
    return RichTable(box=None, header_style="dim", pad_edge=False)


def _mark(check: Check) -> str:
    return "✓" if check.passed else "✗"
