"""Send OpenTelemetry traces: the only module that imports its SDK, and only when NIM_ENABLE_OTEL asks for it."""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Literal

import serving

if TYPE_CHECKING:
    from opentelemetry.sdk.trace.export import SpanExporter

FLUSH_S = 1.0  # at the end; a collector that is gone must not hold the process
_PATH = "/v1/traces"
_CARRIED = (b"traceparent", b"tracestate")  # W3C's headers


class Tracing:
    """One span for each request to the engine, child of the caller's if it sent one. Sending has its own thread."""

    def __init__(
        self, *, service_name: str, exporter: Literal["otlp", "console", "none"], endpoint: str | None = None
    ) -> None:
        """endpoint: the collector, "http://collector:4318"; None: as OpenTelemetry's own variables say."""
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        about = {"service.name": service_name, "service.version": serving.__version__}
        self._provider = TracerProvider(resource=Resource.create(about), shutdown_on_exit=False)
        if (sender := _exporter(exporter, endpoint)) is not None:
            self._provider.add_span_processor(BatchSpanProcessor(sender))
        self._tracer = self._provider.get_tracer("enginery", serving.__version__)
        self._propagator = TraceContextTextMapPropagator()

    def record(
        self,
        *,
        method: str,
        route: str,
        status: int,
        seconds: float,
        headers: Mapping[bytes, bytes],
        attributes: Mapping[str, str | int | float],
    ) -> str:
        """Note a request that has just ended; its trace's id, 32 hex digits."""
        from opentelemetry.trace import SpanKind, StatusCode

        # A header that is no ASCII is no context either: the propagator then begins a new trace.
        carrier = {name.decode(): headers[name].decode("latin-1") for name in _CARRIED if name in headers}
        end = time.time_ns()
        span = self._tracer.start_span(
            f"{method} {route}",
            context=self._propagator.extract(carrier),
            kind=SpanKind.SERVER,
            start_time=end - int(seconds * 1e9),
            attributes={
                "http.request.method": method,
                "http.route": route,
                "http.response.status_code": status,
                **attributes,
            },
        )
        if status >= 500:
            span.set_attribute("error.type", str(status))
            span.set_status(StatusCode.ERROR)
        span.end(end)
        return format(span.get_span_context().trace_id, "032x")

    def close(self) -> None:
        """Send what waits, for FLUSH_S at most."""
        sending = threading.Thread(target=self._provider.shutdown, name="last traces", daemon=True)
        sending.start()
        sending.join(FLUSH_S)


def _exporter(kind: str, endpoint: str | None) -> SpanExporter | None:
    if kind == "none":
        return None
    if kind == "console":
        from opentelemetry.sdk.trace.export import ConsoleSpanExporter

        return ConsoleSpanExporter(formatter=lambda span: span.to_json(indent=None) + "\n")
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter

    if endpoint is None:
        return OTLPSpanExporter()
    base = endpoint.rstrip("/")
    return OTLPSpanExporter(endpoint=base if base.endswith(_PATH) else base + _PATH)
