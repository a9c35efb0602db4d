"""A form: values of the right type, and every mistake with its place."""

from __future__ import annotations

import re

from serving.contract.form import Form


def test_every_mistake_is_collected_with_its_place_and_the_rest_is_still_read() -> None:
    form = Form()
    fields = form.mapping(
        {"name": "a", "sise": "1", "size": ["1"], "id": "!"}, "files[0]", {"name", "size", "id", "uri"}
    )
    assert form.text(fields, "name", "files[0]") == "a"
    assert form.text(fields, "size", "files[0]") == ""
    assert form.text(fields, "id", "files[0]", pattern=re.compile("[a-z]+"), form="letters") == "!"
    assert form.text(fields, "uri", "files[0]") == ""
    assert form.text(fields, "digest", "files[0]", default="none") == "none"
    assert form.mapping(None, "files[1]") == form.mapping("text", "") == {}
    assert form.problems == [
        "files[0].sise: is not a key of this format; did you mean 'size'?",
        "files[0].size: is not one line of text",
        "files[0].id: '!' is not letters",
        "files[0].uri: is missing",
        "files[1]: is missing",
        "the file: is not a mapping",
    ]
