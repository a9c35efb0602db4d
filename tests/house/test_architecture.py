"""ARCHITECTURE.md can be clicked through: every call that it names exists, in the file that its link names."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
CALLS = sorted(set(re.findall(r"\[`([\w.]+)`\]\(([\w/.]+)\)", (ROOT / "ARCHITECTURE.md").read_text("utf-8"))))


@pytest.mark.parametrize(("name", "file"), CALLS, ids=[name for name, _ in CALLS])
def test_every_call_of_the_walk_exists(name: str, file: str) -> None:
    module = file.removesuffix(".py").removesuffix("/__init__").replace("/", ".")
    assert (ROOT / file).is_file()
    assert name == module or name.startswith(f"{module}.")
    scope: list[ast.stmt] = ast.parse((ROOT / file).read_text("utf-8")).body
    for part in name.removeprefix(module).lstrip(".").split("."):
        if part:
            definitions = {_name(node): node for node in scope}
            assert part in definitions
            scope = getattr(definitions[part], "body", [])


def _name(node: ast.stmt) -> str:
    if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
        return node.target.id
    return str(getattr(node, "name", ""))


def test_the_walk_names_enough_calls_to_be_followed() -> None:
    assert len(CALLS) >= 25
