"""Compare loaded engines with their golden outputs: the last thing before ready."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from serving.backends.base import Inputs
from serving.errors import ProofFailed
from serving.tasks import clip, embed, rerank
from serving.tasks.base import ONLY, Item, Tower
from serving.tasks.spec import Spec
from serving.tasks.vectors import BadVectors, check_scores, check_vectors

MAX_NORM_ERROR = 0.05  # cosine does not see length: an engine that forgot to normalise must fail too
MAX_SCORE_ERROR = 0.25  # of the golden scores' standard deviation: correlation sees neither scale nor offset
MAX_BATCH, MAX_BATCH_COST = 8, 512  # an engine keeps the memory of its largest batch: none so large may come again

Infer = Callable[[Inputs], NDArray[np.float32]]
Rows = NDArray[np.float32]  # (N, D)


@dataclass(frozen=True, kw_only=True)
class ProofReport:
    """How close an engine came to its golden outputs. Of a reranker, cosine means the correlation of its scores."""

    num_items: int
    min_cosine: float
    mean_cosine: float
    worst_item: int  # its index
    max_error: float  # of a vector's length, relative; of a score, in standard deviations of the golden scores
    seconds: float


def prove(spec: Spec, infer: Mapping[str, Infer], tokenizer: bytes, golden: bytes, min_cosine: float) -> ProofReport:
    """Answer every golden entry and compare. Raises ProofFailed with the figures.

    infer: by tower. golden: proof.json. Vectors must reach min_cosine each, and their length. Scores of a reranker
    must correlate (Pearson) by min_cosine, and none may be off by more than MAX_SCORE_ERROR.
    """
    start = time.perf_counter()
    towers = {tower.name: tower for tower in spec.towers}
    if isinstance(spec, rerank.RerankSpec):
        pairs = rerank.load_golden(golden)
        encoder = rerank.Encoder(tokenizer, spec)
        items = [encoder.encode(query, [passage], truncate="END")[0] for query, passage in pairs.pairs]
        found = rows(infer[ONLY], towers[ONLY], items)
        return _judged_scores(found, pairs.scores, min_cosine, start)
    parts: tuple[tuple[str, Sequence[Item], Rows], ...]
    if isinstance(spec, clip.ClipSpec):
        both = clip.load_golden(golden)
        sides = clip.Encoder(tokenizer, spec)
        parts = (
            (clip.TEXT, sides.encode_texts(both.texts, truncate="END"), both.text_vectors),
            (clip.IMAGE, sides.encode_images(both.images), both.image_vectors),
        )
    else:
        texts = embed.load_golden(golden)
        parts = ((ONLY, embed.Encoder(tokenizer, spec).encode(texts.texts, truncate="END"), texts.vectors),)
    given, expected = [], []
    for name, entries, vectors in parts:
        if not entries or vectors.shape != (len(entries), spec.dimension):
            raise ProofFailed(
                f"golden outputs are {vectors.shape} for {len(entries)} items of dimension {spec.dimension}: "
                "they belong to another model"
            )
        given.append(rows(infer[name], towers[name], entries))
        expected.append(vectors)
    return _judged_vectors(np.concatenate(given), np.concatenate(expected), min_cosine, start)


def rows(infer: Infer, tower: Tower, items: Sequence[Item]) -> Rows:
    """N items -> (N, D) in their order, in two or more small batches of similar cost.

    Raises ProofFailed for a wrong width.
    """
    costs = [tower.cost(item) for item in items]
    most = min(MAX_BATCH, tower.max_batch, -(-len(items) // 2))
    batches: list[list[int]] = [[]]
    for row in sorted(range(len(items)), key=costs.__getitem__):
        size = len(batches[-1]) + 1
        if size > most or (size > 1 and size * costs[row] > MAX_BATCH_COST):
            batches.append([])
        batches[-1].append(row)
    found = np.zeros((len(items), tower.dimension), dtype=np.float32)
    for chosen in batches:
        output = infer(tower.collate([items[row] for row in chosen]))
        if output.shape != (len(chosen), tower.dimension):
            raise ProofFailed(
                f"the engine gave {output.shape}, expected {(len(chosen), tower.dimension)}: another model"
            )
        found[chosen] = output
    return found


def _judged_vectors(found: Rows, golden: Rows, min_cosine: float, start: float) -> ProofReport:
    try:
        check_vectors(found, *golden.shape)
    except BadVectors as error:
        raise ProofFailed(f"golden outputs are not reproduced: {error}") from error
    norms, golden_norms = np.linalg.norm(found, axis=1), np.linalg.norm(golden, axis=1)
    cosines = np.einsum("nd,nd->n", found, golden) / (norms * golden_norms)
    worst = int(np.argmin(cosines))
    report = ProofReport(
        num_items=len(golden),
        min_cosine=float(cosines[worst]),
        mean_cosine=float(cosines.mean()),
        worst_item=worst,
        max_error=float(np.max(np.abs(norms / golden_norms - 1))),
        seconds=time.perf_counter() - start,
    )
    # Written so that NaN fails: golden vectors come from a file.
    if not (report.min_cosine >= min_cosine and report.max_error <= MAX_NORM_ERROR):
        raise ProofFailed(
            f"golden outputs are not reproduced: lowest cosine {report.min_cosine:.4f} (item {worst} of "
            f"{report.num_items}, mean {report.mean_cosine:.4f}), needs {min_cosine:.4f}; largest error of length "
            f"{report.max_error:.4f}, allowed {MAX_NORM_ERROR}"
        )
    return report


def _judged_scores(found: Rows, golden: NDArray[np.float32], min_cosine: float, start: float) -> ProofReport:
    try:
        check_scores(found, golden.size)
    except BadVectors as error:
        raise ProofFailed(f"golden scores are not reproduced: {error}") from error
    if golden.size < 2 or not golden.std() > 0:
        raise ProofFailed(f"golden outputs hold {golden.size} scores that do not differ: they prove nothing")
    errors = np.abs(found[:, 0] - golden) / golden.std()
    correlation = float(np.corrcoef(found[:, 0], golden)[0, 1]) if found.std() > 0 else 0.0
    worst = int(np.argmax(errors))
    report = ProofReport(
        num_items=golden.size,
        min_cosine=correlation,
        mean_cosine=correlation,
        worst_item=worst,
        max_error=float(errors[worst]),
        seconds=time.perf_counter() - start,
    )
    if not (report.min_cosine >= min_cosine and report.max_error <= MAX_SCORE_ERROR):
        raise ProofFailed(
            f"golden scores are not reproduced: correlation {correlation:.4f}, needs {min_cosine:.4f}; pair {worst} of "
            f"{golden.size} scores {found[worst, 0]:.4f} instead of {golden[worst]:.4f}, {report.max_error:.3f} "
            f"standard deviations off, allowed {MAX_SCORE_ERROR}"
        )
    return report
