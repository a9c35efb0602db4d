"""OpenTelemetry: spans reach a real collector over HTTP, continue the caller's trace, and cost nothing when off."""

from __future__ import annotations

import gzip
import http.server
import json
import queue
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from numpy.typing import NDArray
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from serving.backends.base import Inputs
from serving.watch.logs import FIELDS
from serving.watch.tracing import Tracing
from tests.support.api import serving
from tests.support.profiles import Tiny
from tests.support.server_process import process, wait_for
from tests.support.servers import free_port
from tests.support.tiny_models import embedder

TRACE, PARENT = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"


@dataclass
class Collector:
    url: str
    received: queue.Queue[tuple[str, str, Any]] = field(default_factory=queue.Queue)  # path, media type, request

    def spans(self) -> list[tuple[dict[str, Any], Any]]:
        """(resource attributes, span) of the next message."""
        _, _, message = self.received.get(timeout=30)
        return [
            ({item.key: item.value.string_value for item in group.resource.attributes}, span)
            for group in message.resource_spans
            for scope in group.scope_spans
            for span in scope.spans
        ]


@contextmanager
def collector() -> Iterator[Collector]:
    """As an OpenTelemetry collector listens: OTLP protobuf over HTTP."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            data = self.rfile.read(int(self.headers["Content-Length"]))
            if self.headers["Content-Encoding"] == "gzip":
                data = gzip.decompress(data)
            found.received.put((self.path, self.headers["Content-Type"], ExportTraceServiceRequest.FromString(data)))
            self.send_response(200)
            self.send_header("content-length", "0")
            self.end_headers()

        def log_message(self, *_: object) -> None:
            return

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    found = Collector(f"http://127.0.0.1:{server.server_port}")
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
    try:
        yield found
    finally:
        server.shutdown()
        server.server_close()


def attributes(span: Any) -> dict[str, Any]:
    return {item.key: getattr(item.value, item.value.WhichOneof("value")) for item in span.attributes}


async def test_a_request_becomes_one_span_with_its_figures_in_the_callers_trace(
    tiny: Tiny, caplog: pytest.LogCaptureFixture
) -> None:
    with collector() as found, caplog.at_level("INFO"):
        tracing = Tracing(service_name="embedder", exporter="otlp", endpoint=found.url)
        async with serving(embedder(tiny), tracing=tracing) as server:
            parent = {"traceparent": f"00-{TRACE}-{PARENT}-01", "x-request-id": "r-1"}
            body = {"model": "tiny", "input": ["w1", "w2 w3"]}
            assert (await server.client.post("/v1/embeddings", json=body, headers=parent)).status_code == 200
            assert (await server.client.get("/v1/health/live")).status_code == 200
            assert (await server.client.get("/nowhere")).status_code == 404
        tracing.close()
        path, media, _ = found.received.queue[0]
        ((resource, span),) = found.spans()
    assert (path, media) == ("/v1/traces", "application/x-protobuf")
    assert resource["service.name"] == "embedder"
    assert span.name == "POST /v1/embeddings"
    assert (span.trace_id.hex(), span.parent_span_id.hex()) == (TRACE, PARENT)
    figures = attributes(span)
    assert figures["http.route"] == "/v1/embeddings"
    assert figures["http.response.status_code"] == 200
    assert figures["enginery.num_items"] == 2
    assert figures["enginery.num_tokens"] == 7
    assert figures["enginery.request_id"] == "r-1"
    assert figures["enginery.engine_seconds"] > 0
    seconds = (span.end_time_unix_nano - span.start_time_unix_nano) / 1e9
    assert figures["enginery.engine_seconds"] + figures["enginery.queue_seconds"] <= seconds
    (line,) = [
        getattr(r, FIELDS) for r in caplog.records if r.message == "request" and getattr(r, FIELDS)["status"] == 200
    ]
    assert line["trace_id"] == TRACE


async def test_failures_are_marked_and_a_bad_parent_begins_a_new_trace(tiny: Tiny) -> None:
    def infer(inputs: Inputs) -> NDArray[np.float32]:
        raise RuntimeError("broken")

    with collector() as found:
        tracing = Tracing(service_name="embedder", exporter="otlp", endpoint=f"{found.url}/v1/traces/")
        async with serving(embedder(tiny), tracing=tracing, infer=infer) as server:
            for parent in ("00-0-0-01", "nonsense", "\u00ff", f"ff-{TRACE}-{PARENT}-01"):
                headers = {"traceparent": parent.encode("latin-1")}
                body = {"model": "tiny", "input": "w1"}
                assert (await server.client.post("/v1/embeddings", json=body, headers=headers)).status_code == 500
            assert (await server.embed(model="gpt")).status_code == 404
        tracing.close()
        spans = [span for _, span in found.spans()]
    assert [attributes(span)["http.response.status_code"] for span in spans] == [500] * 4 + [404]
    assert [span.status.code for span in spans] == [2] * 4 + [0]  # error; a refusal is not ours
    assert attributes(spans[0])["error.type"] == "500"
    assert len({span.trace_id for span in spans}) == 5
    assert all(span.trace_id.hex() != TRACE and not span.parent_span_id for span in spans)


async def test_a_caller_that_does_not_sample_is_obeyed(tiny: Tiny) -> None:
    with collector() as found:
        tracing = Tracing(service_name="embedder", exporter="otlp", endpoint=found.url)
        async with serving(embedder(tiny), tracing=tracing) as server:
            for flags in ("00", "01"):
                headers = {"traceparent": f"00-{TRACE}-{PARENT}-{flags}", "x-request-id": flags}
                await server.client.post("/v1/embeddings", json={"model": "tiny", "input": "w1"}, headers=headers)
        tracing.close()
        assert [attributes(span)["enginery.request_id"] for _, span in found.spans()] == ["01"]


async def test_a_collector_that_is_gone_costs_no_request_and_no_end(tiny: Tiny) -> None:
    tracing = Tracing(service_name="embedder", exporter="otlp", endpoint=f"http://127.0.0.1:{free_port()}")
    async with serving(embedder(tiny), tracing=tracing) as server:
        assert (await server.embed()).status_code == 200
    closing = threading.Thread(target=tracing.close)
    closing.start()
    closing.join(20)
    assert not closing.is_alive()


def test_a_process_traces_when_the_environment_says_so(root: Path) -> None:
    with collector() as found:
        environ = {
            "NIM_ENABLE_OTEL": "1",
            "NIM_OTEL_EXPORTER_OTLP_ENDPOINT": found.url,
            "NIM_OTEL_SERVICE_NAME": "mine",
        }
        with process(root, NIM_JSONL_LOGGING="1", **environ) as (child, url):
            wait_for(f"{url}/v1/health/ready", 200, child)
            assert httpx.post(f"{url}/v1/embeddings", json={"model": "tiny", "input": "w1"}).status_code == 200
            child.terminate()
            output, _ = child.communicate(timeout=20)
            assert child.returncode == 0, output
        ((resource, span),) = found.spans()
    assert resource["service.name"] == "mine"
    assert attributes(span)["enginery.num_items"] == 1
    lines = [json.loads(line) for line in output.splitlines()]
    assert [line["trace_id"] for line in lines if line["message"] == "request"] == [span.trace_id.hex()]


def python(code: str, *arguments: str) -> str:
    """What a fresh interpreter prints."""
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments],
        capture_output=True,
        text=True,
        timeout=60,
        cwd=Path(__file__).parents[3],
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize(("exporter", "names"), [("console", ["POST /r"]), ("none", [])])
def test_spans_go_to_the_console_or_nowhere_when_asked(exporter: str, names: list[str]) -> None:
    code = (
        "import sys; from serving.watch.tracing import Tracing;"
        "tracing = Tracing(service_name='s', exporter=sys.argv[1]);"
        "tracing.record(method='POST', route='/r', status=200, seconds=0.1, headers={}, attributes={}); tracing.close()"
    )
    assert [json.loads(line)["name"] for line in python(code, exporter).splitlines()] == names


def test_nothing_of_opentelemetry_is_imported_unless_it_is_asked_for() -> None:
    code = (
        "import sys, serving.watch.tracing, serving.http.server, serving.start.boot, serving.__main__;"
        "print([name for name in sys.modules if name.startswith('opentelemetry')])"
    )
    assert python(code).strip() == "[]"
