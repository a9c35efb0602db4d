"""What an engine takes: every backend refuses the same mistakes in the same words."""

from __future__ import annotations

import numpy as np
import pytest

from serving.backends.base import Inputs
from serving.backends.checks import InputSpec, check_inputs, engine_problems
from serving.errors import BackendError


def test_every_input_is_held_to_its_own_limits_and_a_mistake_in_common_is_said_once() -> None:
    ids = InputSpec(name="input_ids", dtype="int64", axes=((1, 8), (1, None)))
    mask = InputSpec(name="attention_mask", dtype="int64", axes=((1, 8), (1, 32)))
    assert engine_problems([ids, mask]) == []

    def given(num_items: int, num_tokens: int) -> Inputs:
        return {name: np.ones((num_items, num_tokens), np.int64) for name in ("input_ids", "attention_mask")}

    assert check_inputs(given(8, 32), [ids, mask]) == 8
    with pytest.raises(BackendError, match=r"^B is 9, the engine takes 1 to 8; T is 33, the engine takes 1 to 32$"):
        check_inputs(given(9, 33), [ids, mask])
    with pytest.raises(BackendError, match="the engine takes 1 to 8"):
        check_inputs(given(0, 1), [ids, mask])
