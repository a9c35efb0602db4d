"""What may be done with vectors after the engine: checked, shortened, written in fewer bits."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

Kind = Literal["int8", "uint8", "binary", "ubinary"]


class BadVectors(Exception):
    """The engine gave vectors that must not be served; never the request's fault."""


def check_vectors(vectors: NDArray[np.float32], num_items: int, dimension: int) -> None:
    """Raise BadVectors unless they are (num_items, dimension), finite and nowhere all zero."""
    _check_shape(vectors, num_items, dimension)
    norms = np.linalg.norm(vectors, axis=1)
    bad = np.flatnonzero(~np.isfinite(norms) | (norms == 0))
    if bad.size:
        raise BadVectors(f"{bad.size} of {num_items} vectors are zero or not finite, the first is {bad[0]}")


def check_scores(scores: NDArray[np.float32], num_items: int) -> None:
    """Raise BadVectors unless they are (num_items, 1) and finite. A score may be zero."""
    _check_shape(scores, num_items, 1)
    bad = np.flatnonzero(~np.isfinite(scores))
    if bad.size:
        raise BadVectors(f"{bad.size} of {num_items} scores are not finite, the first is {bad[0]}")


def _check_shape(rows: NDArray[np.float32], num_items: int, dimension: int) -> None:
    if rows.shape != (num_items, dimension):
        raise BadVectors(f"the engine gave {rows.shape} for {num_items} items of dimension {dimension}")


def shorten(vectors: NDArray[np.float32], dimensions: int) -> NDArray[np.float32]:
    """(N, D) -> (N, dimensions), of length 1 again: how Matryoshka models are cut."""
    if dimensions >= vectors.shape[1]:
        return vectors
    cut = vectors[:, :dimensions]
    norms = np.linalg.norm(cut, axis=1, keepdims=True)
    return np.asarray(cut / np.maximum(norms, np.finfo(np.float32).tiny), dtype=np.float32)


def quantize(vectors: NDArray[np.float32], kind: Kind, int8_range: float) -> NDArray[Any]:
    """(N, D) float32 -> (N, D) int8 or uint8, or (N, ceil(D / 8)) packed signs: sentence-transformers' conventions.

    int8_range: the component that maps to 127 (uint8: 255); larger ones are clipped.
    """
    if kind == "int8":
        return np.asarray(np.clip(np.rint(vectors * (127 / int8_range)), -128, 127), dtype=np.int8)
    if kind == "uint8":
        return np.asarray(np.clip(np.rint((vectors / int8_range + 1) * 127.5), 0, 255), dtype=np.uint8)
    packed = np.packbits(vectors > 0, axis=-1)
    return packed if kind == "ubinary" else (packed.astype(np.int16) - 128).astype(np.int8)
