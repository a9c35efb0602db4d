"""Before any time is compared: do all servers, and the engine alone, give the same numbers for the same texts?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from benchmarks.load import answers
from benchmarks.report.results import Check
from benchmarks.scenarios import scenarios
from benchmarks.servers.endpoint import Endpoint

LEAST_COSINE = 0.999
NUM_LENGTHS = 48
LENGTHS = (5, 9, 20, 48, 90, 180, 300, 512)


def lengths(max_tokens: int) -> list[int]:
    """Of the texts that are compared: all lengths that the scenarios have."""
    return [min(LENGTHS[n % len(LENGTHS)], max_tokens) for n in range(NUM_LENGTHS)]


def vectors(endpoint: Endpoint, texts: Sequence[str]) -> NDArray[np.float32]:
    """(N, D), each text in a request of its own: batching is not compared here."""
    path = f"{endpoint.prefix}/embeddings"
    bodies = (scenarios.embeddings_body([text], endpoint.model) for text in texts)
    return np.concatenate([answers.vectors(endpoint.post(path, body)) for body in bodies])


def scores(endpoint: Endpoint, query: str, passages: Sequence[str]) -> NDArray[np.float32]:
    """(N,) logits: what only gives their sigmoid is turned back."""
    write = scenarios.ranking_body if endpoint.ranking == "nim" else scenarios.rerank_body
    path = f"{endpoint.prefix}/{'ranking' if endpoint.ranking == 'nim' else 'rerank'}"
    found = np.concatenate(
        [answers.scores(endpoint.post(path, write(query, [passage], endpoint.model))) for passage in passages]
    )
    if endpoint.ranking == "nim":
        return found
    inside = np.clip(found.astype(np.float64), 1e-9, 1 - 1e-9)
    return np.asarray(np.log(inside / (1 - inside)), dtype=np.float32)


def check_vectors(name: str, found: NDArray[np.float32], reference: NDArray[np.float32]) -> Check:
    """The worst cosine of any text."""
    cosines = np.einsum("nd,nd->n", answers.unit(found), answers.unit(reference))
    worst = float(cosines.min())
    return Check(
        name=f"the same vectors: {name}",
        found=f"lowest cosine {worst:.5f} of {len(found)} texts of {min(LENGTHS)} to {max(LENGTHS)} tokens",
        wanted=f"{LEAST_COSINE} or more",
        passed=bool(worst >= LEAST_COSINE),
    )


def check_scores(name: str, found: NDArray[np.float32], reference: NDArray[np.float32]) -> Check:
    """Scores as one vector: its cosine, its mean taken off so that a constant cannot hide a difference."""
    a, b = (values - reference.mean() for values in (found, reference))
    cosine = float(a @ b / max(float(np.linalg.norm(a) * np.linalg.norm(b)), 1e-12))
    return Check(
        name=f"the same scores: {name}",
        found=f"cosine {cosine:.5f} of {len(found)} scores, largest difference {np.abs(found - reference).max():.4f}",
        wanted=f"{LEAST_COSINE} or more",
        passed=bool(cosine >= LEAST_COSINE),
    )


def checks(
    of_texts: Mapping[str, NDArray[np.float32]], of_pairs: Mapping[str, NDArray[np.float32]], reference: str
) -> list[Check]:
    """Every server against the reference, which is one of them."""
    found = [
        check_vectors(f"{name} and {reference}", value, of_texts[reference])
        for name, value in of_texts.items()
        if name != reference
    ]
    return found + [
        check_scores(f"{name} and {reference}", value, of_pairs[reference])
        for name, value in of_pairs.items()
        if name != reference
    ]
