"""What is done with vectors after the engine: lengths, signs and whole numbers, by formulas written out again here."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from serving.tasks.vectors import BadVectors, Kind, check_scores, check_vectors, quantize, shorten


def unit(num_rows: int, dimension: int, seed: int = 0) -> NDArray[np.float32]:
    rows = np.random.default_rng(seed).normal(size=(num_rows, dimension)).astype(np.float32)
    return np.asarray(rows / np.linalg.norm(rows, axis=1, keepdims=True), dtype=np.float32)


@pytest.mark.parametrize("dimensions", [1, 2, 7, 63])
def test_a_shortened_vector_is_the_beginning_and_has_length_one(dimensions: int) -> None:
    whole = unit(5, 64)
    cut = shorten(whole, dimensions)
    assert cut.shape == (5, dimensions)
    assert cut.dtype == np.float32
    assert np.allclose(np.linalg.norm(cut, axis=1), 1, atol=1e-6)
    begun = whole[:, :dimensions].astype(np.float64)
    assert np.allclose(cut, begun / np.linalg.norm(begun, axis=1, keepdims=True), atol=1e-6)


@pytest.mark.parametrize("dimensions", [64, 65, 100_000])
def test_as_many_dimensions_as_there_are_or_more_change_nothing(dimensions: int) -> None:
    whole = unit(3, 64)
    assert np.array_equal(shorten(whole, dimensions), whole)


def test_a_beginning_of_zeros_stays_zero_and_is_never_nan() -> None:
    assert shorten(np.array([[0, 0, 1]], np.float32), 2).tolist() == [[0, 0]]


@pytest.mark.parametrize("dimension", [8, 12, 384])  # 12: the last byte is filled with zeros
def test_binary_is_what_sentence_transformers_packs(dimension: int) -> None:
    vectors = unit(6, dimension)
    vectors[0, 0] = 0  # no component above zero: a 0 bit
    ubinary, binary = quantize(vectors, "ubinary", 0.0), quantize(vectors, "binary", 0.0)
    width = -(-dimension // 8)
    assert (ubinary.shape, ubinary.dtype) == ((6, width), np.uint8)
    assert (binary.shape, binary.dtype) == ((6, width), np.int8)
    bits = np.unpackbits(ubinary, axis=1)[:, :dimension]
    assert np.array_equal(bits, vectors > 0)  # the first component is the highest bit
    # quantize_embeddings(precision="binary") of sentence-transformers, in integers that cannot overflow
    assert np.array_equal(binary.astype(int), ubinary.astype(int) - 128)


@pytest.mark.parametrize(
    ("kind", "expected"), [("int8", [-127, -64, 0, 64, 127, 127, -128]), ("uint8", [0, 64, 128, 191, 255, 255, 0])]
)
def test_the_range_maps_to_the_ends_and_what_is_beyond_is_clipped(kind: Kind, expected: list[int]) -> None:
    given = np.array([[-0.5, -0.25, 0.0, 0.25, 0.5, 0.9, -0.9]], np.float32)
    found = quantize(given, kind, 0.5)
    assert found.dtype == np.dtype(kind)
    assert found.tolist() == [expected]


@pytest.mark.parametrize("kind", ["int8", "uint8"])
def test_a_byte_each_keeps_the_order_of_neighbours(kind: Kind) -> None:
    vectors = unit(200, 128)
    largest = float(np.abs(vectors).max())
    numbers = quantize(vectors, kind, largest).astype(np.float64)
    restored = numbers - (127.5 if kind == "uint8" else 0)
    restored /= np.linalg.norm(restored, axis=1, keepdims=True)
    assert np.min(np.sum(restored * vectors, axis=1)) > 0.999


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_scores_that_are_not_finite_must_not_be_served_but_zero_may(bad: float) -> None:
    scores = np.zeros((3, 1), np.float32)
    check_scores(scores, 3)
    scores[2] = bad
    with pytest.raises(BadVectors, match="1 of 3 scores are not finite, the first is 2"):
        check_scores(scores, 3)


@pytest.mark.parametrize("shape", [(2, 1), (3, 2), (3,), (4, 1), (3, 1, 1)])
def test_scores_and_vectors_of_another_shape_are_refused(shape: tuple[int, ...]) -> None:
    wrong = np.ones(shape, np.float32)
    with pytest.raises(BadVectors, match="for 3 items of dimension 1"):
        check_scores(wrong, 3)
    with pytest.raises(BadVectors, match="for 3 items of dimension 1"):
        check_vectors(wrong, 3, 1)


@pytest.mark.parametrize("bad", [np.nan, np.inf, 0.0])
def test_vectors_that_are_zero_or_not_finite_must_not_be_served(bad: float) -> None:
    vectors = np.ones((3, 16), np.float32)
    check_vectors(vectors, 3, 16)
    vectors[1] = bad
    with pytest.raises(BadVectors, match="1 of 3 vectors"):
        check_vectors(vectors, 3, 16)
    with pytest.raises(BadVectors, match="for 3 items of dimension 16"):
        check_vectors(vectors[:, :4], 3, 16)
