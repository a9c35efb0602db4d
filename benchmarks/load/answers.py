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


class _Place(msgspec.Struct):
    index: int
    logit: float | None = None
    relevance_score: float | None = None


class _Ranking(msgspec.Struct):
    rankings: list[_Place] | None = None  # NIM's
    results: list[_Place] | None = None  # Cohere's and Jina's


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
    wanted = rows[0].size if dimension is None else dimension
    if wrong := [row.size for row in rows if row.size != wanted]:
        raise WrongAnswer(f"a vector of {wrong[0]} numbers, expected {wanted}")
    return np.stack(rows)


def _row(given: str | list[float]) -> NDArray[np.float32]:
    """Base64 of little-endian float32, or numbers."""
    if isinstance(given, list):
        return np.array(given, dtype=np.float32)
    try:
        return np.frombuffer(binascii.a2b_base64(given), dtype="<f4").astype(np.float32, copy=False)
    except ValueError as error:  # not base64, or not whole numbers
        raise WrongAnswer(f"a vector is no base64 of float32: {error}") from error


def scores(body: bytes) -> NDArray[np.float32]:
    """(N,), by index: logits of NIM's form, relevance scores of Cohere's. Raises WrongAnswer."""
    try:
        answer = _RANKING.decode(body)
    except msgspec.DecodeError as error:
        raise WrongAnswer(f"not an answer with scores: {error}") from error
    places = answer.rankings if answer.rankings is not None else answer.results or []
    if not places or sorted(place.index for place in places) != list(range(len(places))):
        raise WrongAnswer("the indices are not those of the passages, each once")
    found = np.empty(len(places), dtype=np.float32)
    for place in places:
        value = place.logit if place.logit is not None else place.relevance_score
        if value is None:
            raise WrongAnswer(f"passage {place.index} has no score")
        found[place.index] = value
    return found


class Comparison:
    """The expected answers of a job, unpacked once."""

    def __init__(self, expected: Expected) -> None:
        self._expected = expected
        shape = (-1, expected.dimension) if expected.kind == "vectors" else (-1,)
        self._numbers = [np.frombuffer(raw, dtype="<f4").reshape(shape) for raw in expected.numbers]
        if expected.kind == "vectors":
            self._numbers = [unit(rows) for rows in self._numbers]

    def problem(self, which: int, body: bytes) -> str | None:
        """Why this body is not the right answer to that request; None: it is."""
        wanted = self._numbers[which]
        try:
            if self._expected.kind == "scores":
                return self._score_problem(wanted, scores(body))
            found = vectors(body, self._expected.dimension)
        except WrongAnswer as error:
            return str(error)
        if found.shape != wanted.shape:
            return f"{len(found)} vectors, expected {len(wanted)}"
        norms = np.sqrt(np.einsum("nd,nd->n", found, found))
        cosines = np.einsum("nd,nd->n", found, wanted) / np.maximum(norms, 1e-12)
        worst = int(np.argmin(cosines))
        if cosines[worst] >= self._expected.least_cosine:  # NaN is no number and fails
            return None
        return f"vector {worst} has cosine {cosines[worst]:.4f} with the one expected{self._owner(found[worst])}"

    def _score_problem(self, wanted: NDArray[np.float32], found: NDArray[np.float32]) -> str | None:
        if found.shape != wanted.shape:
            return f"{len(found)} scores, expected {len(wanted)}"
        differences = np.abs(found - wanted)
        worst = int(np.argmax(differences))
        if differences[worst] <= self._expected.most_difference:
            return None
        return f"score {worst} is {found[worst]:.4f}, expected {wanted[worst]:.4f}"

    def _owner(self, vector: NDArray[np.float32]) -> str:
        """Whose vector it is, if it is that of another text."""
        vector = vector / max(float(np.linalg.norm(vector)), 1e-12)
        for which, rows in enumerate(self._numbers):
            cosines = rows @ vector
            if cosines.size and cosines.max() >= self._expected.least_cosine:
                return f"; it is vector {int(cosines.argmax())} of request {which}"
        return ""


def unit(rows: NDArray[np.float32]) -> NDArray[np.float32]:
    """(N, D), each row of length 1."""
    norms = np.linalg.norm(rows, axis=-1, keepdims=True)
    return np.asarray(rows / np.maximum(norms, 1e-12), dtype=np.float32)
