"""The plots of a benchmark: times the peer as bars, and latency against throughput as curves. SVG, and PNG of both."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.report.results import Cell, Results, Server
from pipelines.report.style import GRID, INK, MUTED, STYLE, pyplot, svg_uri

# Okabe and Ito's palette; markers differ as well.
OURS, PEERS, LIMIT = "#0072b2", ("#d55e00", "#e69f00", "#cc79a7"), "#1c2430"
MARKERS = ("o", "s", "D", "^")
GOAL = 3.0
TICKS = [digit * 10.0**power for power in range(-2, 6) for digit in (1, 2, 5)]  # ms


def ratios(results: Results) -> str:
    """Items per second over the best peer's, a bar for each closed load, with the engine's limit; "" without peers."""
    rows = [row for cell in _closed(results) if (row := _ratio_row(results, cell)) is not None]
    return _svg(lambda plt: _draw_ratios(plt, rows)) if rows else ""


def curves(results: Results) -> str:
    """A panel for each scenario: latency against throughput as the load grows."""
    return _svg(lambda plt: _draw_curves(plt, results)) if _closed(results) else ""


def png(results: Results, path: Path) -> None:
    """Both in one picture with the header, for places that show no HTML."""
    rows = [row for cell in _closed(results) if (row := _ratio_row(results, cell)) is not None]
    plt = pyplot()
    names = list(dict.fromkeys(cell.scenario for cell in _closed(results)))
    if not names:
        return
    bars, panels = (0.9 + 0.27 * len(rows)) if rows else 0.0, _panels_height(names)
    with plt.rc_context(STYLE):
        figure = plt.figure(figsize=(13, 1.0 + bars + panels), layout="constrained")
        parts = figure.subfigures(2 if rows else 1, 1, height_ratios=[bars, panels] if rows else None, squeeze=False)
        if rows:
            _bars(parts[0][0].subplots(), rows)
        _panels(parts[-1][0], results)
        header = f"{results.title} · {results.date[:10]} · {results.machine.get('CPU', '')}, "
        figure.suptitle(f"{header}{results.machine.get('cores', '?')} cores", fontsize=12, fontweight="bold")
        figure.savefig(path, dpi=110, metadata={"Software": None})
        plt.close(figure)


class _Row:
    """One bar."""

    def __init__(self, cell: Cell, peer: Cell, limit: Cell | None) -> None:
        self.cell, self.peer, self.limit = cell, peer, limit
        self.ratio = cell.figures.items_per_s / peer.figures.items_per_s
        self.limit_ratio = limit.figures.items_per_s / peer.figures.items_per_s if limit else None


def _ratio_row(results: Results, cell: Cell) -> _Row | None:
    peer = results.peer_of(cell.scenario, cell.load)
    if peer is None or not peer.figures.items_per_s:
        return None
    return _Row(cell, peer, results.limit_of(cell.scenario, cell.load))


def _closed(results: Results) -> list[Cell]:
    ours = {server.name for server in results.of_role("ours")}
    return [cell for cell in results.cells if cell.server in ours and cell.load.mode == "closed"]


def _draw_ratios(plt: Any, rows: Sequence[_Row]) -> Any:
    figure, axis = plt.subplots(figsize=(11.6, 0.9 + 0.27 * len(rows)), layout="constrained")
    _bars(axis, rows)
    return figure


def _bars(axis: Any, rows: Sequence[_Row]) -> None:
    widest = max(max(row.ratio, row.limit_ratio or 0.0) for row in rows)
    previous = ""
    for place, row in enumerate(rows):
        y = -place
        axis.barh(y, row.ratio, height=0.62, color=OURS, alpha=0.92)
        if row.limit_ratio:
            axis.plot([row.limit_ratio] * 2, [y - 0.38, y + 0.38], color=LIMIT, linewidth=2.2, solid_capstyle="butt")
        axis.text(0.06, y, f"{row.ratio:.1f}×", va="center", color="white", fontsize=8.6, fontweight="bold")
        cell, peer = row.cell.figures.items_per_s, row.peer.figures.items_per_s
        label = f"{_short(cell)} and {_short(peer)} items/s ({row.peer.server})"
        axis.text(widest * 1.02 + 0.06, y, label, va="center", color=MUTED, fontsize=8)
        if row.cell.scenario != previous and place:
            axis.axhline(y + 0.5, color=GRID, linewidth=1)
        previous = row.cell.scenario
    axis.axvline(1, color=PEERS[0], linewidth=1.4)
    axis.axvline(GOAL, color=MUTED, linewidth=1, linestyle=(0, (4, 3)))
    axis.set_yticks(
        [-n for n in range(len(rows))], [f"{r.cell.scenario}, {r.cell.load.words}" for r in rows], color=INK
    )
    axis.set_ylim(-len(rows) + 0.4, 0.6)
    axis.set_xlim(0, widest * 1.02)
    axis.grid(visible=False, axis="y")
    axis.tick_params(axis="y", length=0)
    lines = "orange line: the peer; dashed: the goal, 3 ×; black mark: the engine alone"
    axis.set_xlabel(f"items per second, as a multiple of the best peer's ({lines})")
    axis.set_title("How many times the best peer", loc="left", fontsize=10, fontweight="bold")


def _draw_curves(plt: Any, results: Results) -> Any:
    names = list(dict.fromkeys(cell.scenario for cell in _closed(results)))
    figure = plt.figure(figsize=(11.6, _panels_height(names)), layout="constrained")
    _panels(figure, results)
    return figure


def _panels(figure: Any, results: Results) -> None:
    names = list(dict.fromkeys(cell.scenario for cell in _closed(results)))
    num_columns = _num_columns(names)
    axes = figure.subplots(-(-len(names) // num_columns), num_columns, squeeze=False)
    for axis in axes.ravel()[len(names) :]:
        axis.set_visible(False)
    for axis, name in zip(axes.ravel(), names, strict=False):
        _panel(axis, results, name)
    colours = _colours(results.servers)
    from matplotlib.lines import Line2D

    handles = [
        Line2D([], [], color=colours[server.name], marker=_marker(results.servers, server), label=server.name)
        for server in results.servers
        if server.role != "limit"
    ]
    handles += [
        Line2D([], [], color=MUTED, label="P50, with the number of requests at a time"),
        Line2D([], [], color=MUTED, linestyle=(0, (2, 2)), label="P99"),
    ]
    if results.of_role("limit"):
        handles.append(Line2D([], [], color=LIMIT, linewidth=1.2, label="the most that the engine alone does"))
    figure.legend(handles=handles, loc="outside upper left", ncols=6, frameon=False, fontsize=8.4, handlelength=1.8)


def _num_columns(names: Sequence[str]) -> int:
    return len(names) if len(names) < 4 else 4 if len(names) in (4, 7, 8) else 3


def _panels_height(names: Sequence[str]) -> float:
    return 2.8 * -(-len(names) // _num_columns(names)) + 0.4


def _panel(axis: Any, results: Results, name: str) -> None:
    colours = _colours(results.servers)
    for server in results.servers:
        cells = [c for c in results.cells if (c.scenario, c.server, c.load.mode) == (name, server.name, "closed")]
        if not cells:
            continue
        cells.sort(key=lambda cell: cell.load.concurrency)
        x = [cell.figures.items_per_s for cell in cells]
        if server.role == "limit":
            axis.axvline(max(x), color=LIMIT, linewidth=1.2)
            continue
        colour, marker = colours[server.name], _marker(results.servers, server)
        for percentile, line in (("p50", "-"), ("p99", (0, (2, 2)))):
            y = [1e3 * cell.figures.latency_s[percentile] for cell in cells]
            faint = 1.0 if percentile == "p50" else 0.55
            axis.plot(x, y, marker=marker, markersize=4, linestyle=line, color=colour, alpha=faint, linewidth=1.4)
        shown = cells if len(cells) <= 4 else [cells[0], cells[len(cells) // 2], cells[-1]]
        for cell in shown:
            place = (cell.figures.items_per_s, 1e3 * cell.figures.latency_s["p50"])
            axis.annotate(
                str(cell.load.concurrency),
                place,
                xytext=(0, -10),
                textcoords="offset points",
                ha="center",
                fontsize=7.5,
            )
    axis.set_yscale("log")
    axis.set_xlim(left=0)
    low, high = axis.get_ylim()
    low, high = min(low / 1.5, (low * high) ** 0.5 / 3), max(high * 1.2, (low * high) ** 0.5 * 3)
    axis.set_ylim(low, high)
    axis.set_yticks([tick for tick in TICKS if low <= tick <= high])
    axis.yaxis.set_major_formatter(lambda value, _: f"{value:,.0f}" if value >= 1 else f"{value:g}")
    axis.yaxis.set_minor_locator(_no_ticks())
    axis.set_title(name, loc="left", fontsize=9.5, fontweight="bold")
    axis.set_xlabel("items/s  (right is better)")
    axis.set_ylabel("ms  (down is better)")


def _colours(servers: Sequence[Server]) -> dict[str, str]:
    peers = [server.name for server in servers if server.role == "peer"]
    of_peers = {name: PEERS[n % len(PEERS)] for n, name in enumerate(peers)}
    return {s.name: of_peers.get(s.name, OURS if s.role == "ours" else LIMIT) for s in servers}


def _marker(servers: Sequence[Server], server: Server) -> str:
    return MARKERS[list(servers).index(server) % len(MARKERS)]


def _short(value: float) -> str:
    return f"{value:.0f}" if value >= 100 else f"{value:.1f}"


def _no_ticks() -> Any:
    from matplotlib.ticker import NullLocator

    return NullLocator()


def _svg(draw: Any) -> str:
    plt = pyplot()
    with plt.rc_context(STYLE):
        return svg_uri(draw(plt))
