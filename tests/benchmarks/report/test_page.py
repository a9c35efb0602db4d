"""The page shows every cell, its ratios, and every check."""

from __future__ import annotations

from benchmarks.report import page
from benchmarks.report.results import Check, dump, load
from tests.support.results import cells, figures, results


def test_the_report_shows_every_cell_its_ratios_and_every_check() -> None:
    run = results(
        *cells(figures(333), figures(100), figures(400)),
        checks=(Check(name="a goal", value="1 <x>", required="2", passed=False),),
        notes=("something broke",),
    )
    html = page.render(run)
    for words in ("3.33 ×", "83 %", "✗ not reached", "1 &lt;x&gt;", "something broke", "3.3 ×", "1 at a time"):
        assert words in html, words
    assert load(dump(run)) == run
