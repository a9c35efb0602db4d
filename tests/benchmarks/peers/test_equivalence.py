"""Equal answers first: what differs is seen, and a constant hides nothing."""

from __future__ import annotations

import numpy as np

from benchmarks.peers import equivalence


def test_vectors_that_point_elsewhere_are_not_the_same() -> None:
    rng = np.random.default_rng(0)
    reference = rng.standard_normal((8, 32)).astype(np.float32)
    assert equivalence.check_vectors("a", 3 * reference, reference).passed  # length says nothing
    other = reference.copy()
    other[5] = reference[4]
    check = equivalence.check_vectors("a", other, reference)
    assert not check.passed
    assert "lowest cosine" in check.value


def test_a_constant_cannot_hide_that_scores_differ() -> None:
    reference = np.array([100.0, 101.0, 102.0, 103.0], dtype=np.float32)
    assert equivalence.check_scores("a", reference + 0.001, reference).passed
    assert not equivalence.check_scores("a", reference[::-1], reference).passed


def test_every_server_is_compared_with_the_reference() -> None:
    rows, scores = np.eye(4, dtype=np.float32), np.arange(4, dtype=np.float32)
    wrong = {"enginery": rows, "a": rows, "b": rows[::-1]}
    checks = equivalence.checks(wrong, {"enginery": scores, "a": scores}, "enginery")
    assert [(check.name, check.passed) for check in checks] == [
        ("the same vectors: a and enginery", True),
        ("the same vectors: b and enginery", False),
        ("the same scores: a and enginery", True),
    ]
