"""A server to measure: its address, what it serves, its requests as bytes, and one run of load against it."""

from __future__ import annotations

import urllib.error
import urllib.request
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal
from urllib.parse import urlsplit

import msgspec
import numpy as np
from numpy.typing import NDArray

from benchmarks.load import answers
from benchmarks.load.job import Expected, Generator, Job, Recording
from benchmarks.load.wire import request_bytes
from benchmarks.report.figures import Figures, of_run
from benchmarks.scenarios.scenarios import Requests
from benchmarks.servers import bodies
from benchmarks.servers.bodies import Encoding
from benchmarks.watch import scrape
from pipelines.errors import EngineryError

TIMEOUT_S = 120.0


class _Usage(msgspec.Struct):
    prompt_tokens: int | None = None
    total_tokens: int | None = None


class _Answer(msgspec.Struct):
    usage: _Usage | None = None


class _Model(msgspec.Struct):
    id: str


class _Models(msgspec.Struct):
    data: list[_Model]


@dataclass(frozen=True, kw_only=True)
class Endpoint:
    """Where a server answers, and in which form it takes requests."""

    url: str  # without a path: "http://127.0.0.1:8000"
    model: str
    prefix: str = "/v1"
    ranking: Literal["nim", "cohere"] = "nim"
    headers: Mapping[str, str] = field(default_factory=dict)

    def bodies(self, requests: Requests) -> list[bytes]:
        """One for each request of a scenario."""
        if requests.scenario.kind == "rerank":
            pairs = zip(requests.queries, requests.texts, strict=True)
            return [self._ranking_body(query, passages) for query, passages in pairs]
        kind = _input_type(requests)
        return [bodies.embeddings(texts, self.model, input_type=kind) for texts in requests.texts]

    def path(self, requests: Requests) -> str:
        return self._ranking_path if requests.scenario.kind == "rerank" else self._embeddings_path

    def job(self, requests: Requests, **load: Any) -> Job:
        """load: the fields of Job that say what load it is."""
        parts = urlsplit(self.url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise EngineryError(f"{self.url!r} is no address of a server; write http://HOST:PORT")
        port = parts.port or (443 if parts.scheme == "https" else 80)
        path = self.path(requests)
        wire = tuple(request_bytes(parts.netloc, path, body, self.headers) for body in self.bodies(requests))
        return Job(host=parts.hostname, port=port, tls=parts.scheme == "https", requests=wire, **load)

    def measure(
        self, generator: Generator, requests: Requests, *, rounds_before: int = 0, **load: Any
    ) -> tuple[Figures, Recording]:
        """One run; each round begins at another request, so that short rounds see them all."""
        first = rounds_before * 7 % len(requests.texts)
        recording = generator.run(self.job(requests, first=first, **load))
        return of_run(recording, requests), recording

    def post(self, path: str, body: bytes) -> bytes:
        """The answer to one request. Raises EngineryError with the server's words."""
        return ask(f"{self.url}{path}", body, self.headers)

    def vectors(self, texts: Sequence[str], *, encoding: Encoding = "base64", **more: str) -> NDArray[np.float32]:
        """(N, D), each text in a request of its own: batching cannot mix them up."""
        each = (bodies.embeddings([text], self.model, encoding=encoding, **more) for text in texts)
        return np.concatenate([answers.vectors(self.post(self._embeddings_path, body)) for body in each])

    def scores(self, query: str, passages: Sequence[str]) -> NDArray[np.float32]:
        """(N,), each passage in a request of its own."""
        each = (self._ranking_body(query, [passage]) for passage in passages)
        return np.concatenate([answers.scores(self.post(self._ranking_path, body)) for body in each])

    def expected(self, requests: Requests) -> Expected:
        """This server's answers while nothing else loads it: what differs under load is the batching's fault."""
        if requests.scenario.kind == "rerank":
            pairs = zip(requests.queries, requests.texts, strict=True)
            right = [self.scores(query, passages) for query, passages in pairs]
            return Expected(kind="scores", dimension=1, numbers=_little_endian(right))
        kind = _input_type(requests)
        right = [self.vectors(texts, encoding="float", input_type=kind) for texts in requests.texts]
        return Expected(kind="vectors", dimension=right[0].shape[1], numbers=_little_endian(right))

    def num_tokens(self, requests: Requests) -> list[int]:
        """Of each request, as the server counts them; 0 where it does not tell."""
        path = self.path(requests)
        return [_num_tokens(self.post(path, body)) for body in self.bodies(requests)]

    def metrics(self) -> scrape.Reading:
        """Empty where the server has none that can be read."""
        try:
            return scrape.parse(ask(f"{self.url}/v1/metrics", None, self.headers).decode("utf-8", "replace"))
        except (EngineryError, ValueError):
            return {}

    @property
    def _embeddings_path(self) -> str:
        return f"{self.prefix}/embeddings"

    @property
    def _ranking_path(self) -> str:
        return f"{self.prefix}/{'ranking' if self.ranking == 'nim' else 'rerank'}"

    def _ranking_body(self, query: str, passages: Sequence[str]) -> bytes:
        write = bodies.ranking if self.ranking == "nim" else bodies.rerank
        return write(query, passages, self.model)


def discover(url: str, headers: Mapping[str, str], *, model: str | None = None) -> Endpoint:
    """The endpoint of a NIM-compatible server, which is asked what it serves. Raises EngineryError."""
    url = url.rstrip("/").removesuffix("/v1")
    answer = ask(f"{url}/v1/models", None, headers)
    try:
        names = [entry.id for entry in msgspec.json.decode(answer, type=_Models).data]
    except msgspec.DecodeError as error:
        raise EngineryError(f"{url}/v1/models does not list models: {error}") from error
    if model is not None and model not in names:
        raise EngineryError(f"{url} does not serve {model}; it serves {', '.join(names)}")
    if not names:
        raise EngineryError(f"{url} serves no model")
    return Endpoint(url=url, model=model or names[0], headers=headers)


def tasks_of(endpoint: Endpoint) -> set[str]:
    """Which of "embed" and "rerank" the server answers. Raises EngineryError when neither."""
    probes = {
        "embed": ("embeddings", bodies.embeddings(["a"], endpoint.model, input_type="query")),
        "rerank": ("ranking", bodies.ranking("a", ["b"], endpoint.model)),
    }
    tasks, problems = set(), []
    for task, (route, body) in probes.items():
        try:
            endpoint.post(f"{endpoint.prefix}/{route}", body)
            tasks.add(task)
        except EngineryError as error:
            problems.append(str(error))
    if not tasks:
        raise EngineryError("\n".join([f"{endpoint.url} answers neither embeddings nor rankings:", *problems]))
    return tasks


def ask(url: str, body: bytes | None, headers: Mapping[str, str]) -> bytes:
    """GET, or POST with a body; the answer's body. Raises EngineryError."""
    request = urllib.request.Request(url, body, {"content-type": "application/json", **headers})
    try:
        with urllib.request.urlopen(request, timeout=TIMEOUT_S) as response:
            return bytes(response.read())
    except urllib.error.HTTPError as error:
        message = error.read(500).decode("utf-8", "replace")
        raise EngineryError(f"{url} answered {error.code}: {message}") from error
    except (urllib.error.URLError, TimeoutError, ConnectionError) as error:
        raise EngineryError(f"{url} does not answer: {error}; is the server started?") from error


def _input_type(requests: Requests) -> str:
    return "query" if requests.scenario.kind == "query" else "passage"


def _little_endian(arrays: Sequence[NDArray[np.float32]]) -> tuple[bytes, ...]:
    return tuple(array.astype("<f4").tobytes() for array in arrays)


def _num_tokens(body: bytes) -> int:
    try:
        usage = msgspec.json.decode(body, type=_Answer).usage
    except msgspec.DecodeError:
        return 0
    return (usage.prompt_tokens or usage.total_tokens or 0) if usage else 0
