"""A tiny real HTTP server with NIM's routes, whose answers follow from the texts; a test tells it what to do wrong."""

from __future__ import annotations

import base64
import hashlib
import http.server
import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

DIMENSION = 16
MODEL = "tiny"


@dataclass
class Nim:
    """The server, and how it misbehaves."""

    url: str = ""
    port: int = 0
    task: str = "embed"
    delay_s: float = 0.0  # before each answer
    swap_every: int = 0  # every n-th answer is that of another text
    refuse_every: int = 0  # every n-th answer is 429
    close_every: int = 0  # every n-th answer ends the connection
    hang_up_every: int = 0  # every n-th request is not answered at all
    chunked: bool = False
    prefix: str = ""  # put before texts: another model
    bodies: list[Any] = field(default_factory=list)
    headers: list[dict[str, str]] = field(default_factory=list)
    metrics: str = ""
    lock: threading.Lock = field(default_factory=threading.Lock)


def vector(text: str) -> NDArray[np.float32]:
    """The one that the server gives for this text."""
    seed = int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "little")
    row = np.random.default_rng(seed).standard_normal(DIMENSION).astype(np.float32)
    return row / np.float32(np.linalg.norm(row))


def score(query: str, passage: str) -> float:
    return float(vector(query) @ vector(passage))


class Handler(http.server.BaseHTTPRequestHandler):
    nim: Nim
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def do_GET(self) -> None:
        with self.nim.lock:
            self.nim.headers.append({name.lower(): value for name, value in self.headers.items()})
        if self.path == "/v1/models":
            self.answer(200, json.dumps({"object": "list", "data": [{"id": MODEL}]}).encode())
        elif self.path == "/v1/metrics" and self.nim.metrics:
            self.answer(200, self.nim.metrics.encode())
        else:
            self.answer(404, b"{}")

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        with self.nim.lock:
            self.nim.bodies.append(body)
            self.nim.headers.append({name.lower(): value for name, value in self.headers.items()})
            number = len(self.nim.bodies)
        time.sleep(self.nim.delay_s)
        if self.nim.hang_up_every and number % self.nim.hang_up_every == 0:
            self.close_connection = True
            return
        if self.nim.refuse_every and number % self.nim.refuse_every == 0:
            self.answer(429, b'{"message": "busy"}')
            return
        wrong = bool(self.nim.swap_every and number % self.nim.swap_every == 0)
        if self.path == "/v1/embeddings" and self.nim.task == "embed":
            self.answer(200, embeddings(body, self.nim, wrong=wrong), number)
        elif self.path == "/v1/ranking" and self.nim.task == "rerank":
            self.answer(200, ranking(body), number)
        elif self.path == "/v1/rerank" and self.nim.task == "rerank":
            self.answer(200, reranking(body), number)
        else:
            self.answer(404, b'{"message": "no such route"}')

    def answer(self, status: int, body: bytes, number: int = 0) -> None:
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        if self.nim.close_every and number and number % self.nim.close_every == 0:
            self.send_header("Connection", "close")
            self.close_connection = True
        if self.nim.chunked and status == 200:
            self.send_header("Transfer-Encoding", "chunked")
            self.end_headers()
            for start in range(0, len(body), 700):
                piece = body[start : start + 700]
                self.wfile.write(f"{len(piece):x}\r\n".encode() + piece + b"\r\n")
            self.wfile.write(b"0\r\n\r\n")
            return
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        return


def embeddings(body: Any, nim: Nim, *, wrong: bool) -> bytes:
    texts = [body["input"]] if isinstance(body["input"], str) else body["input"]
    rows = [vector(nim.prefix + text) for text in texts]
    if wrong:  # as after a mix-up in a batch: whole and valid, of the first request that ever came
        first = nim.bodies[0]["input"]
        rows[-1] = vector(nim.prefix + (first if isinstance(first, str) else first[0]))
    data = [
        {
            "object": "embedding",
            "index": index,
            "embedding": base64.b64encode(row.astype("<f4").tobytes()).decode()
            if body.get("encoding_format") == "base64"
            else row.tolist(),
        }
        for index, row in enumerate(rows)
    ]
    num_tokens = sum(len(text.split()) for text in texts)
    usage = {"prompt_tokens": num_tokens, "total_tokens": num_tokens}
    return json.dumps({"object": "list", "data": data[::-1], "model": MODEL, "usage": usage}).encode()


def ranking(body: Any) -> bytes:
    scores = [score(body["query"]["text"], passage["text"]) for passage in body["passages"]]
    order = sorted(range(len(scores)), key=lambda index: -scores[index])
    return json.dumps({"rankings": [{"index": n, "logit": scores[n]} for n in order]}).encode()


def reranking(body: Any) -> bytes:
    scores = [score(body["query"], document) for document in body["documents"]]
    order = sorted(range(len(scores)), key=lambda index: -scores[index])
    return json.dumps({"results": [{"index": n, "relevance_score": scores[n]} for n in order]}).encode()


class _Server(http.server.ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128

    def handle_error(self, *_: object) -> None:  # clients that left
        return


@contextmanager
def serve(**fields: Any) -> Iterator[Nim]:
    """fields: of Nim."""
    nim = Nim(**fields)
    server = _Server(("127.0.0.1", 0), type("Handler", (Handler,), {"nim": nim}))
    nim.port = server.server_address[1]
    nim.url = f"http://127.0.0.1:{nim.port}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    try:
        yield nim
    finally:
        server.shutdown()
        server.server_close()
