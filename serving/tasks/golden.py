"""Golden outputs: how files hold their arrays, and how close to them an engine must come."""

from __future__ import annotations

import base64
from dataclasses import dataclass

import msgspec
import numpy as np
from numpy.typing import NDArray

from serving.errors import ProofFailed
from serving.tasks.vectors import BadVectors, check_scores, check_vectors

MAX_NORM_ERROR = 0.05  # cosine does not see length: an engine that forgot to normalise must fail too
MAX_SCORE_ERROR = 0.25  # of the golden scores' standard deviation: correlation sees neither scale nor offset

Rows = NDArray[np.float32]  # (N, D)


def dump_rows(rows: Rows) -> str:
    """Base64 of little-endian float32, C order."""
    return base64.b64encode(np.ascontiguousarray(rows, dtype="<f4").tobytes()).decode("ascii")


def load_numbers(text: str) -> NDArray[np.float32]:
    """What dump_rows wrote, without its shape."""
    return np.frombuffer(base64.b64decode(text, validate=True), dtype="<f4").astype(np.float32)


def load_rows(text: str, num_rows: int, dimension: int, what: str) -> Rows:
    """(num_rows, dimension). Raises ValueError when the text holds another number of them. what: "texts"."""
    flat = load_numbers(text)
    if dimension < 1 or flat.size != num_rows * dimension:
        raise ValueError(f"golden outputs hold {flat.size} numbers for {num_rows} {what} of dimension {dimension}")
    return flat.reshape(num_rows, dimension)


def dump_file(file: msgspec.Struct) -> bytes:
    """Write golden.json or proof.json in canonical bytes."""
    return msgspec.json.encode(file, order="sorted")


@dataclass(frozen=True, kw_only=True)
class ProofReport:
    """How close an engine came to its golden outputs. Of a reranker, cosine means the correlation of its scores."""

    num_items: int
    min_cosine: float
    mean_cosine: float
    worst_item: int  # its index
    max_error: float  # of a vector's length, relative; of a score, in standard deviations of the golden scores


def compare_vectors(rows: Rows, golden: Rows, min_cosine: float) -> ProofReport:
    """Each vector must reach min_cosine, and the golden one's length. Raises ProofFailed with the figures."""
    try:
        check_vectors(rows, *golden.shape)
    except BadVectors as error:
        raise ProofFailed(f"golden outputs are not reproduced: {error}") from error
    norms, golden_norms = np.linalg.norm(rows, axis=1), np.linalg.norm(golden, axis=1)
    cosines = np.einsum("nd,nd->n", rows, golden) / (norms * golden_norms)
    worst = int(np.argmin(cosines))
    report = ProofReport(
        num_items=len(golden),
        min_cosine=float(cosines[worst]),
        mean_cosine=float(cosines.mean()),
        worst_item=worst,
        max_error=float(np.max(np.abs(norms / golden_norms - 1))),
    )
    # Written so that NaN fails: golden vectors come from a file.
    if not (report.min_cosine >= min_cosine and report.max_error <= MAX_NORM_ERROR):
        raise ProofFailed(
            f"golden outputs are not reproduced: lowest cosine {report.min_cosine:.4f} (item {worst} of "
            f"{report.num_items}, mean {report.mean_cosine:.4f}), needs {min_cosine:.4f}; largest error of length "
            f"{report.max_error:.4f}, allowed {MAX_NORM_ERROR}"
        )
    return report


def compare_scores(rows: Rows, golden: Rows, min_cosine: float) -> ProofReport:
    """(N, 1) scores must correlate (Pearson) by min_cosine with the golden ones, and none be off by MAX_SCORE_ERROR.

    Raises ProofFailed with the figures.
    """
    try:
        check_scores(rows, len(golden))
    except BadVectors as error:
        raise ProofFailed(f"golden scores are not reproduced: {error}") from error
    scores, golden = rows[:, 0], golden[:, 0]
    if golden.size < 2 or not golden.std() > 0:
        raise ProofFailed(f"golden outputs hold {golden.size} scores that do not differ: they prove nothing")
    errors = np.abs(scores - golden) / golden.std()
    correlation = float(np.corrcoef(scores, golden)[0, 1]) if scores.std() > 0 else 0.0
    worst = int(np.argmax(errors))
    report = ProofReport(
        num_items=golden.size,
        min_cosine=correlation,
        mean_cosine=correlation,
        worst_item=worst,
        max_error=float(errors[worst]),
    )
    if not (report.min_cosine >= min_cosine and report.max_error <= MAX_SCORE_ERROR):
        raise ProofFailed(
            f"golden scores are not reproduced: correlation {correlation:.4f}, needs {min_cosine:.4f}; pair {worst} of "
            f"{golden.size} scores {scores[worst]:.4f} instead of {golden[worst]:.4f}, {report.max_error:.3f} "
            f"standard deviations off, allowed {MAX_SCORE_ERROR}"
        )
    return report
