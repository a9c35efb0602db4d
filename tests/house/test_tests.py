"""The tests' own rules: what several files share lies in tests/support, and nothing is imported from a test module."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.published import ROOT

FILES = sorted(path for folder in ("tests", "benchmarks", "examples") for path in (ROOT / folder).rglob("*.py"))
TEST_MODULE = re.compile(r"(^|\.)(test_\w+|conftest)(\.|$)")


def imports(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """(line, module) of each import, also of those in code that is written as a string for another process."""
    for node in ast.walk(tree):
        match node:
            case ast.Import(names=names):
                yield from ((node.lineno, alias.name) for alias in names)
            case ast.ImportFrom(module=module, names=names):
                yield from ((node.lineno, f"{module}.{alias.name}") for alias in names)
            case ast.Constant(value=str(text)):
                for module, name in re.findall(r"^\s*(?:from|import) ([\w.]+)(?: import (\w+))?", text, re.MULTILINE):
                    yield node.lineno, f"{module}.{name}"


@pytest.mark.parametrize(
    ("line", "module"),
    [
        ("from tests.pipelines.plan.test_graph import built", "tests.pipelines.plan.test_graph.built"),
        ("from tests.pipelines.plan import test_graph", "tests.pipelines.plan.test_graph"),
        ("import tests.clients.conftest as shared", "tests.clients.conftest"),
        ("code = 'import sys\\nfrom tests.serving.test_app import one\\n'", "tests.serving.test_app.one"),
    ],
)
def test_an_import_of_a_test_module_is_seen_in_each_form(line: str, module: str) -> None:
    assert module in [name for _, name in imports(ast.parse(line))]
    assert TEST_MODULE.search(module)


def test_nothing_is_imported_from_a_test_module() -> None:
    offenders = [
        f"{path.relative_to(ROOT)}:{line}: {module} (move what is shared to tests/support)"
        for path in FILES
        if path != Path(__file__)  # its examples are what it looks for
        for line, module in imports(ast.parse(path.read_text(), path.name))
        if module.startswith("tests.") and TEST_MODULE.search(module)
    ]
    assert FILES
    assert not offenders, "\n".join(offenders)
