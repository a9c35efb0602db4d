"""The load generator, a real process, against a real server: counts, order, times, and answers that are not right."""

from __future__ import annotations

import time
from dataclasses import replace

import numpy as np
import pytest

from benchmarks.load.job import Arrays, Generator
from benchmarks.report.figures import of_run
from benchmarks.scenarios.corpus import Corpus
from benchmarks.scenarios.scenarios import Requests, by_name, make
from benchmarks.servers.endpoint import Endpoint
from pipelines.errors import EngineryError
from tests.support import bench_server
from tests.support.bench_server import MODEL, Nim


@pytest.fixture(scope="module")
def queries(corpus: Corpus) -> Requests:
    (scenario,) = by_name(["query-20"])
    return make(replace(scenario, num_requests=16), corpus, max_tokens=512)


@pytest.fixture(scope="module")
def batches(corpus: Corpus) -> Requests:
    (scenario,) = by_name(["mixed"])
    return make(replace(scenario, num_requests=12), corpus, max_tokens=64)


@pytest.fixture(scope="module")
def rankings(corpus: Corpus) -> Requests:
    (scenario,) = by_name(["rerank-10"])
    return make(replace(scenario, num_requests=3), corpus, max_tokens=64)


def endpoint(nim: Nim, **more: str) -> Endpoint:
    return Endpoint(url=nim.url, model=MODEL, **more)  # type: ignore[arg-type]


def test_requests_are_sent_in_turn_and_each_answer_is_counted_once(generator: Generator, queries: Requests) -> None:
    with bench_server.serve() as nim:
        recording = generator.run(endpoint(nim).job(queries, min_requests=40, max_requests=40, seconds=0, first=3))
    arrays = Arrays(recording)
    assert arrays.request.tolist() == [(3 + n) % 16 for n in range(40)]
    assert [body["input"] for body in nim.bodies] == [queries.texts[(3 + n) % 16][0] for n in range(40)]
    assert set(arrays.status.tolist()) == {200}
    assert (arrays.latency_s > 0).all()
    assert recording.wall_s >= arrays.latency_s.sum() * 0.9  # one connection: one after another


def test_a_closed_load_keeps_so_many_requests_under_way(generator: Generator, queries: Requests) -> None:
    with bench_server.serve(delay_s=0.05) as nim:
        recording = generator.run(
            endpoint(nim).job(queries, concurrency=8, min_requests=64, max_requests=64, seconds=0)
        )
    arrays = Arrays(recording)
    starts, ends = arrays.due_s, arrays.due_s + arrays.latency_s
    under_way = [int(((starts <= time_s) & (ends > time_s)).sum()) for time_s in starts]
    assert max(under_way) == 8
    assert len(arrays.request) == 64


def test_a_closed_load_ends_after_its_time(generator: Generator, queries: Requests) -> None:
    with bench_server.serve(delay_s=0.01) as nim:
        recording = generator.run(endpoint(nim).job(queries, concurrency=2, seconds=0.3))
    arrays = Arrays(recording)
    assert arrays.due_s.max() <= 0.3
    assert recording.wall_s > 0.2
    assert len(arrays.request) > 4


def test_every_connection_is_answered_once_also_when_that_takes_longer_than_the_time(
    generator: Generator, queries: Requests
) -> None:
    with bench_server.serve(delay_s=0.2) as nim:
        recording = generator.run(endpoint(nim).job(queries, concurrency=3, min_requests=3, seconds=0.05))
    assert Arrays(recording).status.tolist() == [200] * 3


def test_statuses_are_counted_as_they_come(generator: Generator, queries: Requests) -> None:
    with bench_server.serve(refuse_every=4) as nim:
        recording = generator.run(endpoint(nim).job(queries, min_requests=40, max_requests=40, seconds=0))
    figures = of_run(recording, queries)
    assert figures.statuses == {"200": 30, "429": 10}
    assert figures.num_requests == 30
    assert any("status 429" in note and "busy" in note for note in recording.notes)


def test_a_connection_that_the_server_ends_is_opened_again(generator: Generator, queries: Requests) -> None:
    with bench_server.serve(close_every=5) as nim:
        recording = generator.run(
            endpoint(nim).job(queries, concurrency=2, min_requests=40, max_requests=40, seconds=0)
        )
    assert of_run(recording, queries).statuses == {"200": 40}


def test_a_request_that_is_not_answered_has_status_0(generator: Generator, queries: Requests) -> None:
    with bench_server.serve(hang_up_every=10) as nim:
        recording = generator.run(endpoint(nim).job(queries, min_requests=40, max_requests=40, seconds=0))
    assert of_run(recording, queries).statuses == {"0": 4, "200": 36}
    assert any("no answer" in note for note in recording.notes)


def test_an_answer_that_takes_too_long_is_given_up(generator: Generator, queries: Requests) -> None:
    with bench_server.serve(delay_s=5) as nim:
        job = endpoint(nim).job(queries, min_requests=1, max_requests=1, seconds=0, timeout_s=0.3)
        start = time.monotonic()
        recording = generator.run(job)
    assert Arrays(recording).status.tolist() == [0]
    assert time.monotonic() - start < 4


@pytest.mark.parametrize("chunked", [False, True])
def test_right_answers_pass_the_comparison(generator: Generator, batches: Requests, chunked: bool) -> None:
    with bench_server.serve(chunked=chunked) as nim:
        server = endpoint(nim)
        expected = server.expected(batches)
        recording = generator.run(
            server.job(batches, concurrency=4, min_requests=60, max_requests=60, seconds=0, expected=expected)
        )
    assert recording.num_wrong == 0
    assert of_run(recording, batches).statuses == {"200": 60}


def test_a_swapped_vector_is_found_and_its_owner_named(generator: Generator, batches: Requests) -> None:
    with bench_server.serve() as nim:
        server = endpoint(nim)
        expected = server.expected(batches)
        nim.bodies.clear()
        nim.swap_every = 10
        recording = generator.run(
            server.job(batches, concurrency=1, min_requests=36, max_requests=36, seconds=0, expected=expected, first=1)
        )
    assert recording.num_wrong == 3
    assert all("it is vector 0 of request 1" in note for note in recording.notes)
    assert len(recording.notes) == 3


def test_vectors_of_another_model_are_wrong_in_every_answer(generator: Generator, queries: Requests) -> None:
    with bench_server.serve() as nim:
        server = endpoint(nim)
        expected = server.expected(queries)
        nim.prefix = "another "
        recording = generator.run(server.job(queries, min_requests=20, max_requests=20, seconds=0, expected=expected))
    assert recording.num_wrong == 20


@pytest.mark.parametrize("form", ["nim", "cohere"])
def test_scores_are_compared_by_index(generator: Generator, rankings: Requests, form: str) -> None:
    with bench_server.serve(task="rerank") as nim:
        server = endpoint(nim, ranking=form)
        expected = server.expected(rankings)
        right = generator.run(server.job(rankings, min_requests=6, max_requests=6, seconds=0, expected=expected))
        others = type(expected)(kind="scores", dimension=1, numbers=expected.numbers[::-1])
        wrong = generator.run(server.job(rankings, min_requests=6, max_requests=6, seconds=0, expected=others))
    assert right.num_wrong == 0
    assert wrong.num_wrong == 4  # the middle one of three is still its own


def test_an_open_load_sends_what_is_due_whatever_the_server_does(generator: Generator, queries: Requests) -> None:
    with bench_server.serve(delay_s=0.3) as nim:
        recording = generator.run(endpoint(nim).job(queries, mode="constant", rate=100, seconds=0.5, concurrency=4))
    arrays = Arrays(recording)
    assert len(arrays.request) == 50
    assert sorted(np.round(arrays.due_s, 6).tolist()) == pytest.approx([n / 100 for n in range(50)], abs=1e-5)
    assert arrays.latency_s.min() >= 0.3


def test_of_many_requests_a_second_those_that_are_due_are_sent_together(
    generator: Generator, queries: Requests
) -> None:
    with bench_server.serve() as nim:
        recording = generator.run(endpoint(nim).job(queries, mode="constant", rate=4000, seconds=0.2, concurrency=64))
    arrays = Arrays(recording)
    assert len(arrays.request) == 800
    assert arrays.lag_s.min() >= 0
    pauses = np.diff(np.sort(arrays.due_s + arrays.lag_s))
    assert (pauses > 0.0006).sum() >= 50  # one at a time they would be 0.25 ms apart


def test_waiting_to_be_sent_counts_as_latency(generator: Generator, queries: Requests) -> None:
    with bench_server.serve(delay_s=0.1) as nim:
        job = endpoint(nim).job(queries, mode="constant", rate=50, seconds=0.4, concurrency=1, max_connections=1)
        recording = generator.run(job)
    arrays = Arrays(recording)
    assert len(arrays.request) == 20
    assert arrays.latency_s.max() > 1.0  # the last of them waited for nineteen others
    assert arrays.lag_s.max() > 0.9


def test_a_server_that_is_not_there_is_said_plainly(generator: Generator, queries: Requests) -> None:
    with bench_server.serve() as nim:
        gone = endpoint(nim)
    for load in ({"mode": "closed"}, {"mode": "constant", "rate": 10.0}):
        with pytest.raises(EngineryError, match=r"cannot connect to 127\.0\.0\.1:.*is the server started"):
            generator.run(gone.job(queries, seconds=0.1, **load))


def test_the_generator_says_when_it_has_died(queries: Requests) -> None:
    with (
        bench_server.serve() as nim,
        Generator(("false",)) as dead,
        pytest.raises(EngineryError, match="ended with code"),
    ):
        dead.run(endpoint(nim).job(queries))
