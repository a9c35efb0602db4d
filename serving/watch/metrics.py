"""What the server counts, by NIM's names where NIM has one. Labels come from fixed sets, never from a request."""

from __future__ import annotations

from collections.abc import Callable

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    GCCollector,
    Histogram,
    Info,
    PlatformCollector,
    ProcessCollector,
    disable_created_metrics,
    generate_latest,
)

from serving.batching.observing import Ran
from serving.watch.gpu_metrics import GpuCollector

_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)
_POWERS = tuple(2**n for n in range(12))
_TOKENS = tuple(4**n for n in range(2, 9))


class Metrics:
    """One server's metrics in a registry of their own."""

    def __init__(self) -> None:
        disable_created_metrics()  # type: ignore[no-untyped-call]  # they double the text and nobody reads them
        self.registry = registry = CollectorRegistry()
        ProcessCollector(registry=registry)
        PlatformCollector(registry=registry)
        GCCollector(registry=registry)
        self.requests = Counter(
            "request_count", "Requests answered.", ["route", "status"], registry=registry
        )  # exposed as request_count_total
        self.failures = Counter(
            "request_failure", "Requests answered with 4xx or 5xx.", ["route", "status"], registry=registry
        )
        self.latency = Histogram(
            "e2e_request_latency_seconds",
            "From the first byte read to the last byte sent.",
            ["route"],
            buckets=_SECONDS,
            registry=registry,
        )
        self._answers: dict[tuple[str, int], tuple[Counter, Histogram]] = {}
        self.in_flight = Gauge("inflight", "Requests being answered.", registry=registry)
        self.prompt_tokens = Counter("prompt_tokens", "Tokens of texts that were answered.", registry=registry)
        self._lanes = _LaneFamilies(registry)
        self.load_phase = Gauge("load_phase_seconds", "Time of each phase of the start.", ["phase"], registry=registry)
        self.ready = Gauge("ready", "1 when the server answers requests.", registry=registry)
        self._profile = Info("profile", "The profile that serves.", registry=registry)

    def serves(self, *, row: str, profile_id: str, backend: str, precision: str) -> None:
        """Name the profile that was chosen."""
        self._profile.info({"row": row, "id": profile_id, "backend": backend, "precision": precision})
        self.ready.set(1)

    def answered(self, route: str, status: int, seconds: float) -> None:
        """Count one answer; route is one of the application's own."""
        children = self._answers.get((route, status))
        if children is None:  # finding a child by its labels takes longer than counting
            children = self.requests.labels(route, str(status)), self.latency.labels(route)
            self._answers[route, status] = children
        children[0].inc()
        children[1].observe(seconds)
        if status >= 400:
            self.failures.labels(route, str(status)).inc()

    def lane(self, tower: str) -> LaneMetrics:
        """What a batcher tells of the engine that it feeds."""
        return LaneMetrics(self._lanes, tower)

    def watch_gpus(self) -> None:
        """Ask NVML at each scrape."""
        self.registry.register(GpuCollector())

    def text(self) -> bytes:
        """Prometheus text."""
        return generate_latest(self.registry)


class _LaneFamilies:
    """Metrics of an engine and the queue before it, by tower: "model", or "text" and "image"."""

    def __init__(self, registry: CollectorRegistry) -> None:
        tower = ["tower"]
        self.queue_depth = Gauge("queue_depth", "Items waiting for the engine.", tower, registry=registry)
        self.queue_time = Histogram(
            "queue_time_seconds", "An item's time in the queue.", tower, buckets=_SECONDS, registry=registry
        )
        self.batch_size = Histogram("batch_size", "Items of one batch.", tower, buckets=_POWERS, registry=registry)
        self.batch_tokens = Histogram(
            "batch_tokens",
            "Tokens of one batch, before padding to its longest.",
            tower,
            buckets=_TOKENS,
            registry=registry,
        )
        self.batch_seconds = Histogram(
            "batch_seconds", "The engine's time for one batch.", tower, buckets=_SECONDS, registry=registry
        )
        self.busy = Counter(
            "engine_busy_seconds",
            "Time in which batches ran; of one that ran beside others its stream's share.",
            tower,
            registry=registry,
        )
        self.padded_tokens = Counter(
            "padded_tokens", "Tokens that the engine ran, padding included.", tower, registry=registry
        )
        self.padding = Histogram(
            "padding_waste_ratio",
            "The padded share of a batch.",
            tower,
            buckets=(0.05, 0.1, 0.15, 0.2, 0.25, 0.5, 0.75),
            registry=registry,
        )


class LaneMetrics:
    """One tower's: its batcher's observer."""

    def __init__(self, families: _LaneFamilies, tower: str) -> None:
        self._queue_depth = families.queue_depth.labels(tower)
        self._queue_time = families.queue_time.labels(tower)
        self._batch_size = families.batch_size.labels(tower)
        self._batch_tokens = families.batch_tokens.labels(tower)
        self._batch_seconds = families.batch_seconds.labels(tower)
        self._busy = families.busy.labels(tower)
        self._padded_tokens = families.padded_tokens.labels(tower)
        self._padding = families.padding.labels(tower)

    def watch_queue(self, num_queued: Callable[[], int]) -> None:
        self._queue_depth.set_function(num_queued)

    def ran(self, batch: Ran) -> None:
        self._batch_size.observe(batch.num_items)
        self._batch_tokens.observe(batch.cost)
        self._batch_seconds.observe(batch.seconds)
        self._busy.inc(batch.share * batch.seconds)
        self._padded_tokens.inc(batch.padded_cost)
        self._padding.observe(1 - batch.cost / batch.padded_cost if batch.padded_cost else 0.0)
        for wait in batch.waited_s:
            self._queue_time.observe(wait)
