"""What may be done with vectors after the engine: checked, shortened, written in fewer bits."""

from __future__ import annotations

import numpy as np
import pytest

from serving.tasks.vectors import BadVectors, check_scores, quantize, shorten


def unit(num: int, dimension: int) -> np.ndarray:
    vectors = np.random.default_rng(3).normal(size=(num, dimension)).astype(np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def test_a_shortened_vector_is_its_first_numbers_at_length_one() -> None:
    vectors = unit(5, 64)
    short = shorten(vectors, 16)
    assert short.shape == (5, 16)
    assert np.allclose(np.linalg.norm(short, axis=1), 1, atol=1e-6)
    assert np.allclose(short / short[:, :1], vectors[:, :16] / vectors[:, :1], rtol=1e-4)
    assert shorten(vectors, 64) is vectors
    assert shorten(vectors, 100) is vectors


@pytest.mark.parametrize("kind", ["int8", "uint8"])
def test_eight_bits_keep_the_direction(kind: str) -> None:
    vectors = unit(50, 384)
    largest = float(np.abs(vectors).max())
    numbers = quantize(vectors, kind, largest)  # type: ignore[arg-type]
    assert numbers.dtype == np.dtype(kind)
    back = numbers.astype(np.float32) - (127.5 if kind == "uint8" else 0)
    cosines = (back * vectors).sum(axis=1) / np.linalg.norm(back, axis=1)
    assert cosines.min() >= 0.9995


def test_a_component_beyond_the_range_is_clipped_and_does_not_wrap() -> None:
    vectors = np.array([[0.9, -0.9, 0.1]], np.float32)
    assert quantize(vectors, "int8", 0.3).tolist() == [[127, -128, 42]]
    assert quantize(vectors, "uint8", 0.3).tolist() == [[255, 0, 170]]


def test_binary_vectors_pack_signs_as_sentence_transformers_does() -> None:
    vectors = np.array([[1, -1, 1, 1, -1, -1, -1, 1, -0.5, 0.5]], np.float32)
    assert quantize(vectors, "ubinary", 0.0).tolist() == [[0b10110001, 0b01000000]]
    assert quantize(vectors, "binary", 0.0).tolist() == [[0b10110001 - 128, 0b01000000 - 128]]
    assert quantize(vectors, "binary", 0.0).dtype == np.int8


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_score_that_is_not_finite_is_never_served_and_zero_may_be(bad: float) -> None:
    scores = np.array([[0.0], [1.0], [-2.0]], np.float32)
    check_scores(scores, 3)
    scores[2] = bad
    with pytest.raises(BadVectors, match="1 of 3 scores are not finite, the first is 2"):
        check_scores(scores, 3)
    with pytest.raises(BadVectors, match="for 4 items of dimension 1"):
        check_scores(scores, 4)
