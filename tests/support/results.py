"""Results of a side-by-side run with given figures: one cell for this server, a peer and the engine alone."""

from __future__ import annotations

from benchmarks.report.figures import Figures
from benchmarks.report.results import Cell, Load, Results, Server


def figures(items_per_s: float, p50: float = 0.01, p99: float = 0.02) -> Figures:
    return Figures(
        num_requests=10,
        requests_per_s=items_per_s,
        items_per_s=items_per_s,
        tokens_per_s=20 * items_per_s,
        latency_s={"p50": p50, "p90": p50, "p95": p99, "p99": p99, "mean": p50, "max": p99},
        statuses={"200": 10},
        num_wrong=0,
        wall_s=1.0,
        generator_cpu_share=0.01,
        generator_us_per_request=10.0,
        lag_p99_s=0.0,
    )


def results(*cells: Cell, **more: object) -> Results:
    servers = [("enginery", "ours"), ("Infinity optimum", "peer"), ("engine alone", "limit")]
    return Results(
        title="t",
        date="2026-11-21",
        command="c",
        machine={"CPU": "one", "cores": "2"},
        versions={"enginery": "0.1.0"},
        servers=tuple(Server(name=name, words="", role=role) for name, role in servers),  # type: ignore[arg-type]
        cells=cells,
        scenarios={cell.scenario: "texts" for cell in cells},
        **more,  # type: ignore[arg-type]
    )


def cells(ours: Figures, peer: Figures, limit: Figures, scenario: str = "query-20", concurrency: int = 1) -> list[Cell]:
    load = Load(concurrency=concurrency)
    names = ("enginery", "Infinity optimum", "engine alone")
    return [
        Cell(scenario=scenario, load=load, server=name, figures=of_server)
        for name, of_server in zip(names, (ours, peer, limit), strict=True)
    ]
