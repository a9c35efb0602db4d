"""Choose how a CPU's cores are given to an engine: measured at the first start, remembered for the machine."""

from __future__ import annotations

import contextlib
import logging
import statistics
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec

from serving.backends.base import Backend, Inputs
from serving.tasks.base import Tower

log = logging.getLogger(__name__)

HEAVY_S = 0.03  # an engine that takes longer for one short text uses all cores well, and takes long to measure
# How much longer than with all cores a text may take in a stream: where also one that comes alone has no more than a
# stream, and where it is lent all cores and only what runs beside others takes as long.
MAX_SLOWDOWN, MAX_SLOWDOWN_BESIDE = 1.8, 2.2
WORTH = 0.8  # of a lone text's time with a stream's threads: threads that are lent for less are not worth their memory
ROUNDS, SECONDS = 2, 0.12  # of one layout's throughput; the better round counts: others use the machine too
SHORT, LONG = 20, 64  # tokens of the text that comes alone, and of each of a batch's
BATCH = 8


class Layout(msgspec.Struct, frozen=True, kw_only=True):
    """num_streams batches run at once, each on num_threads / num_streams threads, or one alone on alone_threads."""

    num_streams: int
    num_threads: int
    alone_threads: int = 0  # 0: a batch that runs alone has no more than others


@dataclass(frozen=True, kw_only=True)
class Figures:
    """What one layout did."""

    latency_s: float  # of one short text alone
    items_per_s: float  # with every stream busy


Load = Callable[[Layout], Backend]


def choose(
    engine: Backend, load: Load, tower: Tower, num_threads: int, max_slowdown: float | None = None
) -> tuple[Layout, Backend]:
    """The layout with the most throughput of those that keep a lone text quick, and the engine loaded with it.

    engine: loaded with one stream; it is closed when another layout is chosen. Streams are doubled for as long as that
    pays. An engine that lends all threads to a batch that runs alone keeps a lone text as quick as any layout does.
    max_slowdown: None: the usual one. Raises what load and the engine raise.
    """
    if max_slowdown is None:
        max_slowdown = MAX_SLOWDOWN_BESIDE if engine.lends_all else MAX_SLOWDOWN
    best_layout, best = Layout(num_streams=1, num_threads=num_threads), engine
    if num_threads == 1 or latency(best, tower) > HEAVY_S:
        return best_layout, best
    latency_s: dict[int, float] = {}  # by the threads of a stream
    while num_threads % (2 * best_layout.num_streams) == 0:
        layout = Layout(num_streams=2 * best_layout.num_streams, num_threads=num_threads)
        other = load(layout)
        now, then = _side_by_side(((best, best_layout), (other, layout)), tower)
        for shown, figures in ((best_layout, now), (layout, then)):
            log.info(
                "Layout of %d streams on %d threads: %.2f ms for a text alone, %.0f items/s",
                *(shown.num_streams, shown.num_threads, figures.latency_s * 1e3, figures.items_per_s),
            )
            threads = num_threads // shown.num_streams
            latency_s[threads] = min(figures.latency_s, latency_s.get(threads, figures.latency_s))
        if then.items_per_s <= now.items_per_s or then.latency_s > max_slowdown * min(latency_s.values()):
            other.close()
            break
        best.close()
        best_layout, best = layout, other
    quickest = min(latency_s, key=lambda threads: latency_s[threads], default=num_threads)
    share = num_threads // best_layout.num_streams
    if engine.lends_all and quickest != share and latency_s[quickest] < WORTH * latency_s[share]:
        best.close()
        best_layout = msgspec.structs.replace(best_layout, alone_threads=quickest)
        best = load(best_layout)
    return best_layout, best


def recall(file: Path | None, num_threads: int) -> Layout | None:
    """What was chosen here before, with as many threads. None: nothing, or nothing that can be read."""
    if file is None:
        return None
    try:
        layout = msgspec.json.decode(file.read_bytes(), type=Layout)
    except (OSError, msgspec.MsgspecError):
        return None
    fits = layout.num_threads == num_threads and 1 <= layout.num_streams <= num_threads
    return layout if fits else None


def remember(file: Path | None, layout: Layout) -> None:
    """For the next start; where nothing may be written it is measured again."""
    if file is None:
        return
    with contextlib.suppress(OSError):
        file.parent.mkdir(parents=True, exist_ok=True)
        beside = file.with_name(f"{file.name}.{threading.get_native_id()}")
        beside.write_bytes(msgspec.json.encode(layout))
        beside.replace(file)


def latency(engine: Backend, tower: Tower) -> float:
    """Seconds for one short text: the median of a few."""
    inputs = tower.collate(tower.sample(1, SHORT))
    engine.infer(inputs)  # the first prepares kernels
    return statistics.median(_timed(engine, inputs) for _ in range(5))


def _side_by_side(engines: Sequence[tuple[Backend, Layout]], tower: Tower) -> list[Figures]:
    """In turn, so that what else the machine does meets them all."""
    rounds = [
        [
            Figures(latency_s=latency(engine, tower), items_per_s=_busy(engine, layout, tower))
            for engine, layout in engines
        ]
        for _ in range(ROUNDS)
    ]
    return [
        Figures(latency_s=min(f.latency_s for f in figures), items_per_s=max(f.items_per_s for f in figures))
        for figures in zip(*rounds, strict=True)
    ]


def _busy(engine: Backend, layout: Layout, tower: Tower) -> float:
    """Items per second with a thread for every stream."""
    num_items = min(BATCH, tower.max_batch)
    inputs = tower.collate(tower.sample(num_items, LONG))
    engine.infer(inputs)
    counts = [0] * layout.num_streams
    start = time.perf_counter()

    def work(stream: int) -> None:
        while time.perf_counter() - start < SECONDS:
            engine.infer(inputs)
            counts[stream] += 1

    threads = [threading.Thread(target=work, args=(stream,)) for stream in range(layout.num_streams)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return sum(counts) * num_items / (time.perf_counter() - start)


def _timed(engine: Backend, inputs: Inputs) -> float:
    start = time.perf_counter()
    engine.infer(inputs)
    return time.perf_counter() - start
