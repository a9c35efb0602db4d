"""Strict YAML: every scalar is text, and what readers disagree on or choke on is refused."""

from __future__ import annotations

from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from serving.contract import strict_yaml
from serving.contract.strict_yaml import dump, load
from serving.errors import ManifestError

SOURCE = "file.yaml"
# The text of a manifest is one line that can be printed.
LINES = st.text(st.characters(exclude_categories=("C", "Z"), include_characters=" "), max_size=12)
MAPPINGS: st.SearchStrategy[dict[str, Any]] = st.recursive(
    st.dictionaries(LINES, LINES, min_size=1, max_size=4),
    lambda inner: st.dictionaries(LINES, st.one_of(LINES, inner, st.lists(inner, max_size=3)), min_size=1, max_size=4),
    max_leaves=12,
)


@given(MAPPINGS)
def test_what_is_dumped_is_read_as_it_was_by_this_reader_and_by_any_other(tree: dict[str, Any]) -> None:
    assert load(dump(tree), SOURCE) == tree
    assert yaml.safe_load(dump(tree)) == tree


BOMB = "a: &a [x, x]\nb: &b [*a, *a]\nc: [*b, *b]\n"


@pytest.mark.parametrize(
    "loader", [yaml.SafeLoader, getattr(yaml, "CSafeLoader", yaml.SafeLoader)], ids=["python", "libyaml"]
)
@pytest.mark.parametrize(
    ("text", "words"),
    [
        (BOMB, "line 1: anchors"),
        ("a: x\nb: *a\n", "aliases|alias"),
        ("a: 1\na: 2\n", "line 2: key 'a' is given twice"),
        ("a: !!python/object/apply:os.system ['true']\n", "line 1: the tag .*python/object"),
        ("a: !name x\n", "the tag '!name'"),
        ("[" * 40 + "]" * 40, "nested more than 32 deep"),
        ("[" * 20000, "nested more than 32 deep|not YAML"),
        ("a: 1\n---\nb: 2\n", "a second document"),
        ("a: [1\n", "line 2: not YAML"),
        ("a:\n", "a value is missing"),
        ("a: ~\n", "a value is missing"),
        ("? [a]\n: b\n", "a key must be text"),
        ("", "is empty"),
        (b"a: \xff\n", "byte 3 is not UTF-8"),
        ("a: \x00\n", "not YAML"),
        ("x" * (1024 * 1024 + 1), "the limit is 1048576"),
    ],
)
def test_yaml_that_readers_disagree_on_or_choke_on_is_refused(
    text: str | bytes, words: str, loader: type, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(strict_yaml, "_Loader", loader)
    with pytest.raises(ManifestError, match=words):
        load(text, SOURCE)
