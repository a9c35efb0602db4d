"""Everything that is known of a compiler stands in one row, and every table of compilers has the same ones."""

from __future__ import annotations

from typing import get_args

import pytest

from pipelines import compile as compilers
from pipelines.matrix.compilers import COMPILERS, of_hardware
from pipelines.matrix.schema import SkuForm
from serving import backends
from serving.choice.select import GPU_BACKENDS


def test_the_matrix_and_the_stage_know_the_same_compilers() -> None:
    assert set(get_args(SkuForm.model_fields["compiler"].annotation)) == set(COMPILERS) == set(compilers.COMPILERS)
    assert {*of_hardware("gpu"), *of_hardware("cpu")} == set(COMPILERS)


@pytest.mark.parametrize("name", COMPILERS)
def test_a_compilers_engines_have_a_backend_for_its_hardware(name: str) -> None:
    compiler = COMPILERS[name]
    assert compiler.backend in backends.LOADERS
    assert (compiler.backend in GPU_BACKENDS) == (compiler.hardware == "gpu")
    assert compiler.bound_to is None or compiler.bound_to in compiler.distributions
