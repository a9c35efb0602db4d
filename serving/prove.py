"""Compare a loaded engine with its golden outputs: the last thing before ready, and the factory's accuracy figures."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from serving.backends.base import Inputs
from serving.errors import ProofFailed
from serving.tasks.embed import BadVectors, EmbedSpec, Encoder, Golden, check_vectors, collate

MAX_NORM_ERROR = 0.05  # cosine does not see length: an engine that forgot to normalise must fail too
MAX_BATCH = 8


@dataclass(frozen=True, kw_only=True)
class ProofReport:
    """How close an engine came to its golden outputs."""

    num_texts: int
    min_cosine: float
    mean_cosine: float
    worst_text: int  # its index
    max_norm_error: float  # relative
    seconds: float


def prove(
    infer: Callable[[Inputs], NDArray[np.float32]],
    encoder: Encoder,
    spec: EmbedSpec,
    golden: Golden,
    min_cosine: float,
) -> ProofReport:
    """Embed every golden text and compare. Raises ProofFailed with the figures."""
    start = time.perf_counter()
    if not golden.texts or golden.vectors.shape != (len(golden.texts), spec.dimension):
        raise ProofFailed(
            f"golden outputs are {golden.vectors.shape} for {len(golden.texts)} texts of dimension {spec.dimension}: "
            "they belong to another model"
        )
    vectors = embed(infer, encoder, spec, golden.texts)
    try:
        check_vectors(vectors, len(golden.texts), spec)
    except BadVectors as error:
        raise ProofFailed(f"golden outputs are not reproduced: {error}") from error
    norms, golden_norms = np.linalg.norm(vectors, axis=1), np.linalg.norm(golden.vectors, axis=1)
    cosines = np.einsum("nd,nd->n", vectors, golden.vectors) / (norms * golden_norms)
    norm_error = float(np.max(np.abs(norms / golden_norms - 1)))
    worst = int(np.argmin(cosines))
    report = ProofReport(
        num_texts=len(golden.texts),
        min_cosine=float(cosines[worst]),
        mean_cosine=float(cosines.mean()),
        worst_text=worst,
        max_norm_error=norm_error,
        seconds=time.perf_counter() - start,
    )
    # Written so that NaN fails: golden vectors come from a file.
    if not (report.min_cosine >= min_cosine and norm_error <= MAX_NORM_ERROR):
        raise ProofFailed(
            f"golden outputs are not reproduced: lowest cosine {report.min_cosine:.4f} (text {worst} of "
            f"{report.num_texts}, mean {report.mean_cosine:.4f}), needs {min_cosine:.4f}; largest error of length "
            f"{norm_error:.4f}, allowed {MAX_NORM_ERROR}"
        )
    return report


def embed(
    infer: Callable[[Inputs], NDArray[np.float32]], encoder: Encoder, spec: EmbedSpec, texts: tuple[str, ...]
) -> NDArray[np.float32]:
    """N texts -> (N, D) in their order, in small batches of similar length. Raises ProofFailed for a wrong width."""
    items = encoder.encode(texts, truncate="END")
    order = sorted(range(len(items)), key=lambda index: items[index].size)
    vectors = np.zeros((len(items), spec.dimension), dtype=np.float32)
    size = min(MAX_BATCH, spec.shapes.max[0])
    for first in range(0, len(order), size):
        rows = order[first : first + size]
        output = infer(collate([items[row] for row in rows], spec))
        if output.shape != (len(rows), spec.dimension):
            raise ProofFailed(f"the engine gave {output.shape}, expected {(len(rows), spec.dimension)}: another model")
        vectors[rows] = output
    return vectors
