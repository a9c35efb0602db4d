"""The bodies of requests, as NIM's clients and Cohere's write them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any, Literal

Encoding = Literal["base64", "float"]


def embeddings(texts: Sequence[str], model: str, *, encoding: Encoding = "base64", **more: str) -> bytes:
    """Of /v1/embeddings, as the OpenAI client sends it unless another encoding is named. more: other fields."""
    text_or_texts = texts[0] if len(texts) == 1 else list(texts)
    return _json({"model": model, "input": text_or_texts, "encoding_format": encoding, **more})


def ranking(query: str, passages: Sequence[str], model: str) -> bytes:
    """Of /v1/ranking."""
    return _json({"model": model, "query": {"text": query}, "passages": [{"text": text} for text in passages]})


def rerank(query: str, passages: Sequence[str], model: str) -> bytes:
    """Of /v1/rerank, Cohere's and Jina's form: scores of every passage, without texts."""
    return _json({"model": model, "query": query, "documents": list(passages), "return_documents": False})


def _json(body: dict[str, Any]) -> bytes:
    return json.dumps(body, ensure_ascii=False, separators=(",", ":")).encode()
