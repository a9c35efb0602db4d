"""Bodies of requests are what clients send."""

from __future__ import annotations

import json

from benchmarks.servers import bodies


def test_bodies_are_what_clients_send() -> None:
    assert json.loads(bodies.embeddings(["é"], "m", input_type="query")) == {
        "model": "m",
        "input": "é",
        "encoding_format": "base64",
        "input_type": "query",
    }
    assert json.loads(bodies.embeddings(["a", "b"], "m", encoding="float"))["input"] == ["a", "b"]
    assert json.loads(bodies.ranking("q", ["a"], "m")) == {
        "model": "m",
        "query": {"text": "q"},
        "passages": [{"text": "a"}],
    }
    assert json.loads(bodies.rerank("q", ["a"], "m"))["documents"] == ["a"]
