"""Say in words what bounds a cell: from where the server's time and its CPU time went."""

from __future__ import annotations

from benchmarks.report.results import Cell
from benchmarks.report.text import milliseconds

BUSY = 0.85  # an engine that ran for this share of the time is what bounds
THREAD_FULL = 0.8  # of a core
WASTE = 0.1  # padding that is worth a word
SLOWER = 1.15  # a batch, against the same one alone


def bound(cell: Cell, limit: Cell | None = None, same: Cell | None = None) -> str:
    """A few sentences; "" where the server tells nothing of its inside.

    limit: the engine alone at its best. same: the engine alone with the batches that the server ran.
    """
    inside, figures = cell.inside, cell.figures
    if inside is None or inside.engine_busy is None:
        return ""
    if figures.generator_cpu_share > THREAD_FULL:
        return "The load generator: it takes a whole core."
    alone = cell.load.mode == "closed" and cell.load.concurrency == 1
    words = [_of_one_request(cell) if alone and inside.engine_busy < BUSY else _of_many(cell), _slower(cell, same)]
    if limit is not None and limit.figures.items_per_s:
        share = figures.items_per_s / limit.figures.items_per_s
        words.append(f"{share:.0%} of the engine's limit{f' ({limit.shape})' if limit.shape else ''}.")
    return " ".join(word for word in words if word)


def _slower(cell: Cell, same: Cell | None) -> str:
    """Whether a batch takes longer inside the server than the engine alone needs for it."""
    here = cell.inside.engine_s if cell.inside is not None else None
    alone = same.figures.latency_s.get("p50") if same is not None else None
    if same is None or not here or not alone or here < SLOWER * alone:
        return ""
    beside = f"{milliseconds(alone)} where the engine has the machine to itself ({same.shape})"
    return f"A batch takes {milliseconds(here)}, and {beside}."


def _of_one_request(cell: Cell) -> str:
    """Where the time of one request after another goes."""
    inside, total = cell.inside, cell.figures.latency_s.get("mean", 0.0)
    assert inside is not None
    engine, queue = inside.engine_s or 0.0, inside.queue_s or 0.0
    within = inside.request_s or 0.0
    if not total or not within:
        return "One request at a time: nothing runs beside it."
    # A large request runs in several batches: what of its time the engine ran, and not one batch.
    engine = max(engine, (inside.engine_busy or 0.0) * total)
    parts = [
        ("the engine", engine),
        ("waiting for it", min(queue, max(0.0, within - engine))),
        ("the rest of the server", max(0.0, within - engine - min(queue, max(0.0, within - engine)))),
        ("HTTP and the client", max(0.0, total - within)),
    ]
    listed = ", ".join(f"{name} {milliseconds(seconds)}" for name, seconds in parts if seconds >= 0.02 * total)
    return f"Latency, not throughput: of {milliseconds(total)}, {listed}."


def _of_many(cell: Cell) -> str:
    inside = cell.inside
    assert inside is not None
    busy = inside.engine_busy or 0.0
    waste = inside.padding_waste or 0.0
    padding = f", {waste:.0%} of its work padding" if waste >= WASTE else ""
    if busy >= BUSY:
        return f"The engine: busy {min(busy, 1):.0%} of the time{padding}."
    main = inside.cpu_by_thread.get("main", 0.0)
    if main >= THREAD_FULL:
        return f"The event loop: {main:.0%} of a core; the engine is busy {busy:.0%}."
    if cell.load.mode == "open":
        return f"Nothing: the load is below capacity, the engine is busy {busy:.0%}."
    rest = "; ".join(f"{name} {share:.0%} of a core" for name, share in list(inside.cpu_by_thread.items())[:3])
    between = "the way between requests and batches" + (f" ({rest})" if rest else "")
    return f"The engine is busy {busy:.0%}{padding}; the rest is {between}."
