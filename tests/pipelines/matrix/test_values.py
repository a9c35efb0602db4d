"""Laws of the matrix's values: a row's name and its parts."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipelines.matrix.load import load
from pipelines.matrix.values import RowName
from serving.contract.profile import Precision
from tests.support.published import MATRIX

names = st.from_regex(r"[a-z0-9][a-z0-9.-]*", fullmatch=True)  # as the matrix allows them
row_names = st.builds(
    RowName, model=names, sku=names, precision=st.sampled_from(Precision), tp=st.sampled_from([1, 2, 4, 8, 16])
)


@given(row_names)
def test_a_rows_name_and_its_parts_are_the_same_thing(name: RowName) -> None:
    assert RowName.parse(str(name)) == name


@given(st.one_of(st.text(), st.from_regex(r"[a-z_-]*__[a-z_]*__(fp8|int4)__tp[0-9]*")))
def test_a_text_is_a_rows_name_or_it_is_not(text: str) -> None:
    name = RowName.parse(text)
    assert name is None or str(name) == text


def test_every_row_of_the_matrix_is_found_again_by_its_name() -> None:
    rows = load(MATRIX).rows
    for row in rows:
        name = RowName.parse(row.name)
        assert name is not None
        assert (name.model, name.sku, name.precision, name.tp) == (row.model.name, row.sku.name, row.precision, row.tp)
        assert row.name.endswith(f"__{name.cell}")


@pytest.mark.parametrize(
    "text",
    ["", "tiny", "tiny__fp8", "tiny__l40s__fp8__tp0", "tiny__l40s__fp8__tp01", "tiny__l40s__q4__tp1", "a__b__c__d"],
)
def test_what_is_no_rows_name_has_no_parts(text: str) -> None:
    assert RowName.parse(text) is None
