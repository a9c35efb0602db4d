"""A server to measure: its address, what it serves, its requests as bytes, and one run of load against it."""

from __future__ import annotations

import urllib.error
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal
from urllib.parse import urlsplit

import msgspec
import numpy as np

from benchmarks.load import answers
from benchmarks.load.job import Expected, Generator, Job, Outcome
from benchmarks.load.wire import request_bytes
from benchmarks.report.figures import Figures, of_run
from benchmarks.scenarios.scenarios import Requests, embeddings_body, ranking_body, rerank_body
from pipelines.errors import EngineryError

RankingForm = Literal["nim", "cohere"]
TIMEOUT_S = 120.0


@dataclass(frozen=True, kw_only=True)
class Endpoint:
    """Where a server answers, and how it wants to be asked."""

    url: str  # without a path: "http://127.0.0.1:8000"
    model: str
    prefix: str = "/v1"
    ranking: RankingForm = "nim"
    encoding: Literal["base64", "float"] = "base64"
    headers: Mapping[str, str] = field(default_factory=dict)

    def bodies(self, requests: Requests) -> list[bytes]:
        """One for each request of a scenario."""
        if requests.scenario.kind == "rerank":
            write = ranking_body if self.ranking == "nim" else rerank_body
            pairs = zip(requests.queries, requests.texts, strict=True)
            return [write(query, passages, self.model) for query, passages in pairs]
        more = {"input_type": "query" if requests.scenario.kind == "query" else "passage"}
        return [embeddings_body(texts, self.model, encoding=self.encoding, **more) for texts in requests.texts]

    def path(self, requests: Requests) -> str:
        if requests.scenario.kind != "rerank":
            return f"{self.prefix}/embeddings"
        return f"{self.prefix}/{'ranking' if self.ranking == 'nim' else 'rerank'}"

    def job(self, requests: Requests, **how: Any) -> Job:
        """how: the fields of Job that say what load it is."""
        parts = urlsplit(self.url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise EngineryError(f"{self.url!r} is no address of a server; write http://HOST:PORT")
        port = parts.port or (443 if parts.scheme == "https" else 80)
        path = self.path(requests)
        made = tuple(request_bytes(parts.netloc, path, body, self.headers) for body in self.bodies(requests))
        return Job(host=parts.hostname, port=port, tls=parts.scheme == "https", requests=made, **how)

    def measure(
        self, generator: Generator, requests: Requests, *, rounds_before: int = 0, **how: Any
    ) -> tuple[Figures, Outcome]:
        """One run; each round begins at another request, so that short rounds see them all."""
        first = rounds_before * 7 % len(requests.texts)
        outcome = generator.run(self.job(requests, first=first, **how))
        return of_run(outcome, requests), outcome

    def post(self, path: str, body: bytes) -> bytes:
        """Ask once, by hand. Raises EngineryError with what the server said."""
        return ask(f"{self.url}{path}", body, self.headers)

    def expected(self, requests: Requests, *, one_at_a_time: bool = True) -> Expected:
        """What this server answers to each request when nothing else loads it, each text in a request of its own.

        Nothing can be mixed up then: what differs under load is the batching's fault.
        """
        path = self.path(requests)
        if requests.scenario.kind == "rerank":
            write = ranking_body if self.ranking == "nim" else rerank_body
            numbers = []
            for query, passages in zip(requests.queries, requests.texts, strict=True):
                sent = [[passage] for passage in passages] if one_at_a_time else [list(passages)]
                found = [answers.scores(self.post(path, write(query, part, self.model))) for part in sent]
                numbers.append(np.concatenate(found).astype("<f4").tobytes())
            return Expected(kind="scores", dimension=1, numbers=tuple(numbers))
        kind = "query" if requests.scenario.kind == "query" else "passage"
        numbers, dimension = [], 0
        for texts in requests.texts:
            sent = [[text] for text in texts] if one_at_a_time else [list(texts)]
            rows = []
            for part in sent:
                body = self.post(path, embeddings_body(part, self.model, encoding="float", input_type=kind))
                rows.append(answers.vectors(body))
                dimension = rows[0].shape[1]
            numbers.append(np.concatenate(rows).astype("<f4").tobytes())
        return Expected(kind="vectors", dimension=dimension, numbers=tuple(numbers))


class _Model(msgspec.Struct):
    id: str


class _Models(msgspec.Struct):
    data: list[_Model]


def discover(url: str, headers: Mapping[str, str] | None = None, *, model: str | None = None) -> Endpoint:
    """Ask a NIM-compatible server what it serves. Raises EngineryError."""
    url = url.rstrip("/").removesuffix("/v1")
    found = ask(f"{url}/v1/models", None, headers or {})
    try:
        names = [entry.id for entry in msgspec.json.decode(found, type=_Models).data]
    except msgspec.DecodeError as error:
        raise EngineryError(f"{url}/v1/models does not list models: {error}") from error
    if model is not None and model not in names:
        raise EngineryError(f"{url} does not serve {model}; it serves {', '.join(names)}")
    if not names:
        raise EngineryError(f"{url} serves no model")
    return Endpoint(url=url, model=model or names[0], headers=headers or {})


def tasks_of(endpoint: Endpoint) -> set[str]:
    """Which of "embed" and "rerank" the server answers. Raises EngineryError when neither."""
    probes = {
        "embed": (f"{endpoint.prefix}/embeddings", embeddings_body(["a"], endpoint.model, input_type="query")),
        "rerank": (f"{endpoint.prefix}/ranking", ranking_body("a", ["b"], endpoint.model)),
    }
    found, problems = set(), []
    for task, (path, body) in probes.items():
        try:
            endpoint.post(path, body)
            found.add(task)
        except EngineryError as error:
            problems.append(str(error))
    if not found:
        raise EngineryError("\n".join([f"{endpoint.url} answers neither embeddings nor rankings:", *problems]))
    return found


def ask(url: str, body: bytes | None, headers: Mapping[str, str]) -> bytes:
    """GET, or POST with a body; the answer's body. Raises EngineryError."""
    request = urllib.request.Request(url, body, {"content-type": "application/json", **headers})
    try:
        with urllib.request.urlopen(request, timeout=TIMEOUT_S) as response:
            return bytes(response.read())
    except urllib.error.HTTPError as error:
        said = error.read(500).decode("utf-8", "replace")
        raise EngineryError(f"{url} answered {error.code}: {said}") from error
    except (urllib.error.URLError, TimeoutError, ConnectionError) as error:
        raise EngineryError(f"{url} does not answer: {error}; is the server started?") from error
