"""Results on a terminal: a table per scenario."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table

from benchmarks.report.page import ms, number, percent
from benchmarks.report.results import Results


def show(results: Results, console: Console | None = None) -> None:
    """Every cell, what bounds it, and the checks."""
    console = console or Console(highlight=False)
    for name, words in results.scenarios.items():
        cells = [cell for cell in results.cells if cell.scenario == name]
        if not cells:
            continue
        table = Table(title=f"{name}: {words}", title_justify="left", box=None, header_style="dim", pad_edge=False)
        table.add_column("load")
        for column in ("req/s", "items/s", "tokens/s", "P50 ms", "P90", "P95", "P99", "generator"):
            table.add_column(column, justify="right")
        for cell in cells:
            found = cell.figures
            times = (ms(found.latency_s.get(f"p{n}")) for n in (50, 90, 95, 99))
            rates = (number(value) for value in (found.requests_per_s, found.items_per_s, found.tokens_per_s))
            table.add_row(cell.load.words, *rates, *times, percent(found.generator_cpu_share))
        console.print(table)
        for cell in cells:
            others = {status: count for status, count in cell.figures.statuses.items() if status != "200"}
            if others or cell.figures.num_wrong:
                console.print(
                    f"  {cell.load.words}: statuses {others}, {cell.figures.num_wrong} wrong answers", style="red"
                )
            if cell.bound:
                console.print(f"  {cell.load.words}: {cell.bound}", style="dim")
        console.print()
    for check in results.checks:
        console.print(f"{'✓' if check.passed else '✗'} {check.name}: {check.found}")
    for note in results.notes:
        console.print(f"  {note}", style="red")
