"""Show a benchmark's results to a person: one HTML file that needs nothing else, and a PNG of its plots."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.report import plots
from benchmarks.report.results import Cell, Results
from benchmarks.report.text import minutes, ms, number, percent
from pipelines.report.style import template


@dataclass(frozen=True, kw_only=True)
class Line:
    """One row of a scenario's table."""

    cell: Cell
    role: str
    first: bool  # of its load
    times_peer: float | None
    of_limit: float | None


@dataclass(frozen=True, kw_only=True)
class Section:
    """One scenario."""

    name: str
    words: str
    closed: tuple[Line, ...]
    opened: tuple[Line, ...]


def write(results: Results, stem: Path) -> None:
    """STEM.html and STEM.png."""
    stem.with_suffix(".html").write_text(render(results), "utf-8")
    plots.png(results, stem.with_suffix(".png"))


def render(results: Results) -> str:
    """The page."""
    path = Path(__file__).with_name("page.html.j2")
    return template(path, ms=ms, number=number, percent=percent, minutes=minutes).render(
        results=results,
        sections=sections(results),
        tiles=tiles(results),
        lead=lead(results),
        ratios=plots.ratios(results),
        curves=plots.curves(results),
        has_peers=bool(results.of_role("peer")),
        has_limit=bool(results.of_role("limit")),
    )


def sections(results: Results) -> list[Section]:
    """The cells, scenario by scenario, load by load, ours first."""
    return [
        Section(
            name=name,
            words=words,
            closed=tuple(_lines(results, name, "closed")),
            opened=tuple(_lines(results, name, "open")),
        )
        for name, words in results.scenarios.items()
    ]


def _lines(results: Results, scenario: str, mode: str) -> list[Line]:
    loads = sorted({c.load for c in results.cells if c.scenario == scenario and c.load.mode == mode})
    lines: list[Line] = []
    for load in loads:
        peer, limit = results.peer_of(scenario, load), results.limit_of(scenario, load)
        cells = [(server, results.cell(scenario, load, server.name)) for server in results.servers]
        for server, cell in cells:
            if cell is None:
                continue
            compared = mode == "closed" and server.role == "ours"  # open load: all answer what was sent
            lines.append(
                Line(
                    cell=cell,
                    role=server.role,
                    first=not any(line.cell.load == load for line in lines),
                    times_peer=_ratio(cell, peer) if compared else None,
                    of_limit=_ratio(cell, limit) if mode == "closed" and server.role != "limit" else None,
                )
            )
    return lines


def tiles(results: Results) -> list[tuple[str, str]]:
    """(figure, what it is): of each scenario, against the peer if there is one."""
    figures = []
    for section in sections(results):
        ours = [line for line in section.closed if line.role == "ours"]
        ratios = [line.times_peer for line in ours if line.times_peer is not None]
        if ratios:
            figure = span([f"{ratio:.1f}" for ratio in (min(ratios), max(ratios))], " ×")
            figures.append((figure, f"the best peer, {section.name}"))
        elif ours:
            most = max(ours, key=lambda line: line.cell.figures.items_per_s).cell
            figures.append((f"{number(most.figures.items_per_s)}", f"{section.name}, items/s at {most.load.words}"))
    return figures


def lead(results: Results) -> str:
    """One or two sentences."""
    closed = [line for section in sections(results) for line in section.closed if line.role == "ours"]
    times = [line.times_peer for line in closed if line.times_peer is not None]
    shares = [line.of_limit for line in closed if line.of_limit is not None]
    words = []
    if times:
        span_words = span([f"{min(times):.1f}", f"{max(times):.1f}"], "")
        words.append(f"{span_words} times the items per second of the best peer, over {len(times)} loads.")
    if shares:
        span_words = span([f"{100 * min(shares):.0f}", f"{100 * max(shares):.0f}"], " %")
        words.append(f"{span_words} of what the engine alone does.")
    if results.checks:
        reached = sum(check.passed for check in results.checks)
        words.append(f"{reached} of {len(results.checks)} checks and goals are reached.")
    return " ".join(words)


def span(values: Sequence[str], unit: str) -> str:
    """ "2.1" and "3.4" -> "2.1–3.4"; the same twice: once."""
    return ("–".join(dict.fromkeys(values))) + unit


def _ratio(cell: Cell, other: Cell | None) -> float | None:
    if other is None or not other.figures.items_per_s:
        return None
    return cell.figures.items_per_s / other.figures.items_per_s
