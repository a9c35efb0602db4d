"""Before any time is compared: do all servers, and the engine alone, give the same numbers for the same texts?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from benchmarks.load.answers import unit
from benchmarks.report.results import Check
from benchmarks.servers.endpoint import Endpoint

LEAST_COSINE = 0.999
NUM_LENGTHS = 48
LENGTHS = (5, 9, 20, 48, 90, 180, 300, 512)


def lengths(max_tokens: int) -> list[int]:
    """Of the texts that are compared: all lengths that the scenarios have."""
    return [min(LENGTHS[n % len(LENGTHS)], max_tokens) for n in range(NUM_LENGTHS)]


def logits(endpoint: Endpoint, query: str, passages: Sequence[str]) -> NDArray[np.float32]:
    """(N,), of a server that gives their sigmoid turned back."""
    scores = endpoint.scores(query, passages)
    if endpoint.ranking == "nim":
        return scores
    shares = np.clip(scores.astype(np.float64), 1e-9, 1 - 1e-9)
    return np.asarray(np.log(shares / (1 - shares)), dtype=np.float32)


def check_vectors(name: str, rows: NDArray[np.float32], reference: NDArray[np.float32]) -> Check:
    """The worst cosine of any text. rows, reference: (N, D)."""
    cosines = np.einsum("nd,nd->n", unit(rows), unit(reference))
    worst = float(cosines.min())
    return Check(
        name=f"the same vectors: {name}",
        value=f"lowest cosine {worst:.5f} of {len(rows)} texts of {min(LENGTHS)} to {max(LENGTHS)} tokens",
        required=f"{LEAST_COSINE} or more",
        passed=bool(worst >= LEAST_COSINE),
    )


def check_scores(name: str, scores: NDArray[np.float32], reference: NDArray[np.float32]) -> Check:
    """Scores as one vector: its cosine, its mean taken off so that a constant cannot hide a difference."""
    a, b = (values - reference.mean() for values in (scores, reference))
    cosine = float(a @ b / max(float(np.linalg.norm(a) * np.linalg.norm(b)), 1e-12))
    return Check(
        name=f"the same scores: {name}",
        value=f"cosine {cosine:.5f} of {len(scores)} scores, largest difference {np.abs(scores - reference).max():.4f}",
        required=f"{LEAST_COSINE} or more",
        passed=bool(cosine >= LEAST_COSINE),
    )


def checks(
    of_texts: Mapping[str, NDArray[np.float32]], of_pairs: Mapping[str, NDArray[np.float32]], reference: str
) -> list[Check]:
    """Every server against the reference, which is one of them."""
    return [
        *(
            check_vectors(f"{name} and {reference}", rows, of_texts[reference])
            for name, rows in of_texts.items()
            if name != reference
        ),
        *(
            check_scores(f"{name} and {reference}", scores, of_pairs[reference])
            for name, scores in of_pairs.items()
            if name != reference
        ),
    ]
