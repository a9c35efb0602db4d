"""No request made of the OpenAPI document gets a 5xx, or an answer that the document does not promise."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest

from tests.support.api import Server, listening, serving
from tests.support.profiles import Tiny
from tests.support.tiny_models import Model, embedder, reranker, see_and_read

MODELS: dict[str, Callable[[Tiny], Model]] = {
    "embed": embedder,
    "rerank": lambda tiny: reranker(),
    "clip": lambda tiny: see_and_read(),
}
CHECKS = [
    "not_a_server_error",
    "status_code_conformance",
    "content_type_conformance",
    "response_headers_conformance",
    "response_schema_conformance",
    "negative_data_rejection",
    "unsupported_method",
]


@contextmanager
def running(model: Model) -> Iterator[tuple[Server, int]]:
    """A server on a port, in a thread of its own."""
    started, found, loops = threading.Event(), [], []

    async def run() -> None:
        async with serving(model, queue=5000) as server, listening(server) as port:
            stop = asyncio.Event()
            found.append((server, port))
            loops.append((asyncio.get_running_loop(), stop))
            started.set()
            await stop.wait()

    thread = threading.Thread(target=lambda: asyncio.run(run()))
    thread.start()
    assert started.wait(30)
    try:
        yield found[0]
    finally:
        loop, stop = loops[0]
        loop.call_soon_threadsafe(stop.set)
        thread.join(30)


def attack(model: Model, phases: list[str], max_examples: int) -> int:
    """Send what schemathesis makes of the document; the number of requests. Fails with every failed check."""
    import schemathesis  # takes a second, and these tests are slow ones
    from schemathesis.engine import from_schema
    from schemathesis.engine.events import FatalError, NonFatalError, ScenarioFinished

    with running(model) as (server, port):
        schema = schemathesis.openapi.from_url(f"http://127.0.0.1:{port}/openapi.json")
        schema.config.generation.update(max_examples=max_examples, deterministic=True, database="none")
        schema.config.phases.update(phases=phases)
        schema.config.checks.update(included_check_names=CHECKS)
        num_requests, failures = 0, []
        for event in from_schema(schema).execute():
            if isinstance(event, FatalError | NonFatalError):
                failures.append(str(getattr(event, "exception", None) or getattr(event, "info", event)))
            if not isinstance(event, ScenarioFinished):
                continue
            num_requests += len(event.recorder.interactions)
            for case_id, checks in event.recorder.checks.items():
                case = event.recorder.cases[case_id].value
                failures += [
                    f"{event.label} {check.name}: {check.failure_info.failure} body={case.body!r:.500}"
                    for check in checks
                    if check.failure_info is not None
                ]
        statuses = {
            int(sample.labels["status"])
            for family in server.metrics.requests.collect()
            for sample in family.samples
            if sample.value
        }
    assert failures == []
    assert {200, 400} <= statuses
    assert max(statuses) < 500
    return num_requests


@pytest.mark.parametrize(("task", "max_examples"), [("embed", 90), ("rerank", 30), ("clip", 90)])
def test_nothing_that_the_document_suggests_breaks_the_server(task: str, max_examples: int, tiny: Tiny) -> None:
    assert attack(MODELS[task](tiny), ["fuzzing"], max_examples) >= 95


@pytest.mark.slow
@pytest.mark.timeout(1500)
@pytest.mark.parametrize(("task", "max_examples"), [("embed", 1500), ("rerank", 500), ("clip", 1500)])
def test_nothing_that_the_document_suggests_breaks_the_server_in_5000_requests(
    task: str, max_examples: int, tiny: Tiny
) -> None:
    num_requests = attack(MODELS[task](tiny), ["examples", "coverage", "fuzzing"], max_examples)
    print(f"{task}: {num_requests} requests")
    assert num_requests >= 1670  # 5010 of the three tasks
