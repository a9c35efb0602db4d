"""Towers: what a batch of items becomes for its engine."""

from __future__ import annotations

import msgspec
import numpy as np
import pytest

from tests.support.profiles import MAX_TOKENS, Tiny


def test_collating_pads_on_the_right_to_the_longest(tiny: Tiny) -> None:
    inputs = tiny.spec.towers[0].collate([np.array([1, 7, 2]), np.array([1, 2])])
    assert inputs["input_ids"].tolist() == [[1, 7, 2], [1, 2, 0]]
    assert inputs["attention_mask"].tolist() == [[1, 1, 1], [1, 1, 0]]
    assert set(inputs) == {"input_ids", "attention_mask"}
    named = msgspec.structs.replace(tiny.spec, input_names=("token_type_ids", "input_ids"))
    assert named.towers[0].collate([np.array([1, 2])])["token_type_ids"].tolist() == [[0, 0]]


@pytest.mark.parametrize(("longest", "width"), [(1, 16), (16, 16), (17, 32), (32, 32)])
def test_a_width_may_be_rounded_up_but_never_beyond_the_engine(tiny: Tiny, longest: int, width: int) -> None:
    inputs = tiny.spec.towers[0].collate([np.ones(longest, np.int64)], multiple=16)
    assert inputs["input_ids"].shape == (1, width)
    assert inputs["attention_mask"].sum() == longest
    assert tiny.spec.towers[0].collate([np.ones(30, np.int64)], multiple=40)["input_ids"].shape == (1, MAX_TOKENS)
