"""The difference of two readings of a server's /v1/metrics: where the time of its requests went."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence

import msgspec
from prometheus_client.parser import text_string_to_metric_families

Reading = Mapping[str, float]  # a metric's name -> its value, summed over labels


class Inside(msgspec.Struct, frozen=True, kw_only=True):
    """What happened inside the server; means, but for shares and sums. None: the server does not tell."""

    engine_busy: float | None = None  # share of the wall time in which the engine ran, or the part of it that did
    engine_streams: float | None = None  # batches that ran at once
    engine_s: float | None = None  # of one batch
    batch_items: float | None = None
    batch_tokens: float | None = None
    padding_waste: float | None = None  # padded share of all that the engine computed
    queue_s: float | None = None  # an item's time before its batch
    request_s: float | None = None  # from the first byte read to the last one written
    cpu_by_thread: dict[str, float] = {}  # share of a core
    cpu: float | None = None  # of all threads, in cores


def parse(text: str) -> dict[str, float]:
    """Prometheus text; buckets of histograms are left out. Raises ValueError."""
    sums: dict[str, float] = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            if not sample.name.endswith("_bucket"):
                sums[sample.name] = sums.get(sample.name, 0.0) + sample.value
    return sums


def between(before: Reading, after: Reading, wall_s: float, cpu_by_thread: Mapping[str, float]) -> Inside:
    """The differences of two readings, as means."""

    def growth(name: str) -> float | None:
        return after[name] - before.get(name, 0.0) if name in after else None

    def mean(name: str) -> float | None:
        total, count = growth(f"{name}_sum"), growth(f"{name}_count")
        return total / count if total is not None and count else None

    ran, busy, streams = growth("batch_seconds_sum"), growth("engine_busy_seconds_total"), None
    if ran and busy:
        streams = ran / busy
    elif ran and wall_s > 0:  # a server that does not say has at least so many
        busy = ran / max(1, math.ceil(ran / wall_s - 0.05))
    tokens, padded = growth("batch_tokens_sum"), growth("padded_tokens_total")
    waste = 1 - tokens / padded if tokens is not None and padded else mean("padding_waste_ratio")
    return Inside(
        engine_busy=busy / wall_s if busy is not None and wall_s > 0 else None,
        engine_streams=streams,
        engine_s=mean("batch_seconds"),
        batch_items=mean("batch_size"),
        batch_tokens=mean("batch_tokens"),
        padding_waste=waste,
        queue_s=mean("queue_time_seconds"),
        request_s=mean("e2e_request_latency_seconds"),  # of all routes together: probes are few
        cpu_by_thread=dict(cpu_by_thread),
        cpu=sum(cpu_by_thread.values()) if cpu_by_thread else None,
    )


def median(rounds: Sequence[Inside]) -> Inside:
    """Of several rounds: the median of each figure that the server told."""

    def middle(field: str) -> float | None:
        values = [value for inside in rounds if (value := getattr(inside, field)) is not None]
        return float(statistics.median(values)) if values else None

    names = {name for inside in rounds for name in inside.cpu_by_thread}
    shares = {name: statistics.median(inside.cpu_by_thread.get(name, 0.0) for inside in rounds) for name in names}
    fields = (field for field in Inside.__struct_fields__ if field != "cpu_by_thread")
    by_share = dict(sorted(shares.items(), key=lambda entry: -entry[1]))
    return Inside(cpu_by_thread=by_share, **{field: middle(field) for field in fields})
