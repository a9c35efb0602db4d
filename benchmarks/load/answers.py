"""Read answers of /v1/embeddings and of the ranking routes, and compare them with the expected ones."""

from __future__ import annotations

import binascii

import msgspec
import numpy as np
from numpy.typing import NDArray

from benchmarks.load.job import Expected


class WrongAnswer(ValueError):
    """An answer that is not the one of this request."""


class _Vector(msgspec.Struct):
    index: int
    embedding: str | list[float]


class _Embeddings(msgspec.Struct):
    data: list[_Vector]


class _Ranked(msgspec.Struct):
    index: int
    logit: float | None = None
    relevance_score: float | None = None


class _Ranking(msgspec.Struct):
    rankings: list[_Ranked] | None = None  # NIM's
    results: list[_Ranked] | None = None  # Cohere's and Jina's


_EMBEDDINGS = msgspec.json.Decoder(_Embeddings)
_RANKING = msgspec.json.Decoder(_Ranking)


def vectors(body: bytes, dimension: int | None = None) -> NDArray[np.float32]:
    """(N, D), by index. dimension: what D must be. Raises WrongAnswer."""
    try:
        data = _EMBEDDINGS.decode(body).data
    except msgspec.DecodeError as error:
        raise WrongAnswer(f"not an answer with embeddings: {error}") from error
    if not data or sorted(vector.index for vector in data) != list(range(len(data))):
        raise WrongAnswer(f"the indices are not 0 to {len(data) - 1}, each once")
    rows = [_row(vector.embedding) for vector in sorted(data, key=lambda vector: vector.index)]
    right = rows[0].size if dimension is None else dimension
    if wrong := [row.size for row in rows if row.size != right]:
        raise WrongAnswer(f"a vector of {wrong[0]} numbers, expected {right}")
    return np.stack(rows)


def _row(embedding: str | list[float]) -> NDArray[np.float32]:
    """(D,) from base64 of little-endian float32, or from numbers."""
    if isinstance(embedding, list):
        return np.array(embedding, dtype=np.float32)
    try:
        return np.frombuffer(binascii.a2b_base64(embedding), dtype="<f4").astype(np.float32, copy=False)
    except ValueError as error:  # not base64, or not whole numbers
        raise WrongAnswer(f"a vector is no base64 of float32: {error}") from error


def scores(body: bytes) -> NDArray[np.float32]:
    """(N,), by index: logits of NIM's form, relevance scores of Cohere's. Raises WrongAnswer."""
    try:
        answer = _RANKING.decode(body)
    except msgspec.DecodeError as error:
        raise WrongAnswer(f"not an answer with scores: {error}") from error
    ranking = answer.rankings if answer.rankings is not None else answer.results or []
    if not ranking or sorted(ranked.index for ranked in ranking) != list(range(len(ranking))):
        raise WrongAnswer("the indices are not those of the passages, each once")
    by_index = np.empty(len(ranking), dtype=np.float32)
    for ranked in ranking:
        score = ranked.logit if ranked.logit is not None else ranked.relevance_score
        if score is None:
            raise WrongAnswer(f"passage {ranked.index} has no score")
        by_index[ranked.index] = score
    return by_index


class Comparison:
    """The expected answers of a job, unpacked once."""

    def __init__(self, expected: Expected) -> None:
        self._expected = expected
        shape = (-1, expected.dimension) if expected.kind == "vectors" else (-1,)
        self._numbers = [np.frombuffer(raw, dtype="<f4").reshape(shape) for raw in expected.numbers]
        if expected.kind == "vectors":
            self._numbers = [unit(rows) for rows in self._numbers]

    def problem(self, request: int, body: bytes) -> str | None:
        """Why this body is not the right answer to that request; None: it is."""
        right = self._numbers[request]
        try:
            if self._expected.kind == "scores":
                return self._score_problem(right, scores(body))
            rows = vectors(body, self._expected.dimension)
        except WrongAnswer as error:
            return str(error)
        if rows.shape != right.shape:
            return f"{len(rows)} vectors, expected {len(right)}"
        norms = np.sqrt(np.einsum("nd,nd->n", rows, rows))
        cosines = np.einsum("nd,nd->n", rows, right) / np.maximum(norms, 1e-12)
        worst = int(np.argmin(cosines))
        if cosines[worst] >= self._expected.least_cosine:  # NaN is no number and fails
            return None
        return f"vector {worst} has cosine {cosines[worst]:.4f} with the one expected{self._owner(rows[worst])}"

    def _score_problem(self, right: NDArray[np.float32], answered: NDArray[np.float32]) -> str | None:
        if answered.shape != right.shape:
            return f"{len(answered)} scores, expected {len(right)}"
        differences = np.abs(answered - right)
        worst = int(np.argmax(differences))
        if differences[worst] <= self._expected.most_difference:
            return None
        return f"score {worst} is {answered[worst]:.4f}, expected {right[worst]:.4f}"

    def _owner(self, vector: NDArray[np.float32]) -> str:
        """Whose vector it is, if it is that of another text."""
        vector = vector / max(float(np.linalg.norm(vector)), 1e-12)
        for request, rows in enumerate(self._numbers):
            cosines = rows @ vector
            if cosines.size and cosines.max() >= self._expected.least_cosine:
                return f"; it is vector {int(cosines.argmax())} of request {request}"
        return ""


def unit(rows: NDArray[np.float32]) -> NDArray[np.float32]:
    """(N, D), each row of length 1."""
    norms = np.linalg.norm(rows, axis=-1, keepdims=True)
    return np.asarray(rows / np.maximum(norms, 1e-12), dtype=np.float32)
