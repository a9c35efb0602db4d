"""The report's plots, as SVG data URIs: how they look and what they group; bytes depend on the figures alone."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pipelines.report.model import ReportRow
from pipelines.report.style import INK, STYLE, pyplot, svg_uri
from pipelines.tasks.labels import Labels

# Okabe and Ito's palette, told apart by colour-blind readers; markers differ as well.
COLOURS = {"fp32": "#4d5562", "fp16": "#0072b2", "bf16": "#009e73", "fp8": "#cc79a7", "int8": "#d55e00"}
MARKERS = {"fp32": "s", "fp16": "o", "bf16": "^", "fp8": "D", "int8": "X"}
LADDER = tuple(COLOURS)
LEAST_LOSS = 1e-7  # figures are recorded to 7 digits: below this, 1 - cosine says nothing


def tradeoff(rows: Sequence[ReportRow], labels: Labels) -> str:
    """Accuracy lost against throughput of what ran here and against every engine size; "" for nothing."""
    judged = [row for row in rows if labels.loss_of(row.metrics) is not None]
    timed = [row for row in judged if row.speeds]
    sized = [row for row in judged if row.size_bytes]
    panels = [panel for panel in ((timed, "speed"), (sized, "size")) if panel[0]]
    if not panels:
        return ""
    plt = pyplot()
    with plt.rc_context(STYLE):
        figure, axes = plt.subplots(1, len(panels), figsize=(11.6, 3.9), squeeze=False)
        for axis, (shown, kind) in zip(axes[0], panels, strict=True):
            _scatter(axis, shown, kind, labels)
        figure.tight_layout(w_pad=3)
        return svg_uri(figure)


def distribution(rows: Sequence[ReportRow], labels: Labels) -> str:
    """The loss of everything golden on a logarithmic scale, a band for each distinct measurement; "" for nothing."""
    import numpy as np

    series: dict[tuple[float, ...], list[ReportRow]] = {}
    for row in rows:
        if losses_of_row := labels.losses(row.metrics):
            series.setdefault(losses_of_row, []).append(row)
    if not series:
        return ""
    ordered = sorted(series.items(), key=lambda item: (LADDER.index(item[1][0].precision), item[1][0].evaluated))
    losses = [np.maximum(np.asarray(values), LEAST_LOSS) for values, _ in ordered]
    low, high = np.log10(LEAST_LOSS) - 0.15, max(np.log10(max(loss.max() for loss in losses)) + 0.2, -4)
    bins = np.logspace(low, high, 110)
    plt = pyplot()
    with plt.rc_context(STYLE):
        figure, axis = plt.subplots(figsize=(11.6, 0.75 + 0.62 * len(ordered)))
        for place, ((_, members), loss) in enumerate(zip(ordered, losses, strict=True)):
            base, colour = len(ordered) - 1 - place, COLOURS[members[0].precision]
            counts, edges = np.histogram(loss, bins=bins)
            heights = base + 0.8 * counts / max(counts.max(), 1)
            axis.stairs(heights, edges, baseline=base, fill=True, color=colour, alpha=0.35, linewidth=0)
            axis.stairs(heights, edges, baseline=base, color=colour, linewidth=1.1)
            for value, width in ((loss.mean(), 2.2), (np.quantile(loss, 0.99), 1.1)):
                axis.plot([value, value], [base, base + 0.8], color=INK, linewidth=width, solid_capstyle="butt")
        axis.set_xscale("log")
        axis.set_xlim(10**low, 10**high)
        axis.set_ylim(-0.1, len(ordered) - 0.05)
        names = [_series_label(members) for _, members in reversed(ordered)]
        axis.set_yticks([place + 0.3 for place in range(len(ordered))], names)
        axis.tick_params(axis="y", length=0, colors=INK)
        axis.grid(visible=False, axis="y")
        axis.spines["left"].set_visible(False)
        axis.set_xlabel(f"{labels.loss_of_one}, per {labels.values}  (left is better; 1e-7 and less are drawn at 1e-7)")
        figure.tight_layout()
        return svg_uri(figure)


def _scatter(axis: Any, rows: Sequence[ReportRow], kind: str, labels: Labels) -> None:
    """Rows at one place are one mark: SKUs that share an engine cannot differ."""
    marks = _marks(rows, kind, labels)
    for x, loss, members in marks:
        colour = COLOURS[members[0].precision]
        face = colour if any(row.state == "passed" for row in members) else "white"
        marker = MARKERS[members[0].precision]
        axis.plot(x, loss, marker, markersize=9, markerfacecolor=face, markeredgecolor=colour, markeredgewidth=1.6)
    axis.set_yscale("log")
    axis.set_ylim(LEAST_LOSS / 12, max(1, 3 * max(loss for _, loss, _ in marks)))
    axis.invert_yaxis()
    widest = max(x for x, _, _ in marks) * 1.55
    axis.set_xlim(0, widest)
    axis.set_ylabel(f"{labels.loss}  (up is better)")
    if kind == "speed":
        axis.set_title("What ran on this machine", loc="left", fontsize=10, fontweight="bold")
        axis.set_xlabel(f"items per second, {labels.saturated[rows[0].speeds[-1].tower]}  (right is better)")
    else:
        axis.set_title("Everything judged", loc="left", fontsize=10, fontweight="bold")
        axis.set_xlabel("engine size in MB  (left is better)")
    _label(axis, marks, widest)


Mark = tuple[float, float, list[ReportRow]]  # x, loss, the rows there


def _marks(rows: Sequence[ReportRow], kind: str, labels: Labels) -> list[Mark]:
    """Marks from the left; rows of one precision whose marks would cover each other share one."""
    placed = [
        (
            row.speeds[-1].items_per_s
            if kind == "speed"
            else (row.size_bytes or 0) / 1e6,  # of pictures, where there are
            max(labels.loss_of(row.metrics) or 0.0, LEAST_LOSS),
            row,
        )
        for row in rows
    ]
    placed.sort(key=lambda mark: (mark[0], mark[1], mark[2].row))
    near = 0.03 * max(x for x, _, _ in placed)
    marks: list[Mark] = []
    for x, loss, row in placed:
        for mark_x, mark_loss, members in marks:
            same = members[0].precision == row.precision and (members[0].state == row.state)
            if same and x - mark_x <= near and 0.8 < loss / mark_loss < 1.25:
                members.append(row)
                break
        else:
            marks.append((x, loss, [row]))
    return marks


def _label(axis: Any, marks: Sequence[Mark], widest: float) -> None:
    """Names beside the marks; one that would run into names further right goes above them, a line for each."""
    for place, (x, loss, members) in enumerate(marks):
        row = members[0]
        who = row.sku if len(members) == 1 else f"{len(members)} rows"
        refused = "" if any(m.state == "passed" for m in members) else ", refused"
        followed_by = sum(
            0 <= other_x - x < 0.45 * widest and 0.4 < other_loss / loss < 2.5
            for other_x, other_loss, _ in marks[place + 1 :]
        )
        axis.annotate(
            f"{row.precision} · {who}{refused}",
            (x, loss),
            xytext=(-5, 11 * followed_by) if followed_by else (9, 0),
            textcoords="offset points",
            va="center",
            fontsize=8.2,
        )


def _series_label(members: Sequence[ReportRow]) -> str:
    first = members[0]
    who = first.sku if len(members) == 1 else f"{len(members)} rows"
    return f"{first.precision} · {first.evaluated.replace('typed-onnx', 'typed ONNX')} · {who}"
