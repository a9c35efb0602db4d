"""Figures as text: three digits, a unit, an en dash for what is not known."""

from __future__ import annotations

from collections.abc import Mapping


def ms(seconds: float | None) -> str:
    """Milliseconds without the unit, for a column."""
    if seconds is None:
        return "–"
    value = 1e3 * seconds
    return f"{value:,.0f}" if value >= 100 else f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def milliseconds(seconds: float) -> str:
    """With the unit."""
    return f"{1e3 * seconds:.2f} ms" if seconds < 0.1 else f"{1e3 * seconds:.0f} ms"


def percentiles(latency_s: Mapping[str, float]) -> str:
    """ "P50 1.0 ms, P90 2.0 ms, P99 3.0 ms, MAX 4.0 ms" of Figures.latency_s."""
    if not latency_s:
        return "none"
    return ", ".join(f"{name.upper()} {1e3 * latency_s[name]:.1f} ms" for name in ("p50", "p90", "p99", "max"))


def number(value: float | None) -> str:
    if value is None:
        return "–"
    return f"{value:,.0f}" if value >= 100 else f"{value:.1f}" if value >= 1 else f"{value:.2f}"


def percent(value: float | None) -> str:
    return "–" if value is None else f"{100 * value:.0f} %"


def minutes(seconds: float) -> str:
    return f"{seconds / 60:.0f} min" if seconds >= 90 else f"{seconds:.0f} s"
