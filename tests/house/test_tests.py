"""The tests' own rules: nothing is imported from a test module, and collecting them imports nothing that takes seconds.

What several files share lies in tests/support.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.published import ROOT

# Each takes a second or more; import them in the function that needs them, and `pytest --collect-only` stays quick.
SLOW_IMPORTS = {
    "torch",
    "transformers",
    "optimum",
    "modelopt",
    "kubernetes",
    "dagster_k8s",
    "schemathesis",
    "scipy",
    "matplotlib",
}
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


def at_once(tree: ast.Module) -> Iterator[tuple[int, str]]:
    """Imports that run when the module is imported: of its own level, or in a try."""
    for node in tree.body:
        if isinstance(node, ast.Import | ast.ImportFrom | ast.Try):
            yield from imports(node)


def slow_imports(path: Path) -> list[str]:
    return [
        f"{path}:{line}: {module}"
        for line, module in at_once(ast.parse(path.read_text(), path.name))
        if module.partition(".")[0] in SLOW_IMPORTS
    ]


def test_no_file_imports_at_once_what_takes_seconds() -> None:
    folders = ("tests", "pipelines", "serving", "benchmarks")
    assert not [line for folder in folders for path in (ROOT / folder).rglob("*.py") for line in slow_imports(path)]


def test_a_slow_import_is_seen(tmp_path: Path) -> None:
    (tmp_path / "module.py").write_text("import numpy\nfrom torch.nn import Module\n\ndef late():\n    import torch\n")
    assert slow_imports(tmp_path / "module.py") == [f"{tmp_path}/module.py:2: torch.nn.Module"]
