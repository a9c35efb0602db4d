"""The rooms of the house: no import cycle, nothing at the top that belongs in a folder, no folder or module too large.

Each rule is a function from a tree to what breaks it, so that each is also seen to fail on a tree that breaks it.
"""

from __future__ import annotations

import ast
import statistics
from collections.abc import Callable, Iterator, Mapping
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import grimp
import pytest

from tests.support.published import ROOT

TOP = {
    "pipelines": {"__init__.py", "errors.py", "stage.py"},
    "serving": {"__init__.py", "__main__.py", "errors.py"},
}
MAX_MODULES = 12  # of a folder, without __init__
MAX_LINES = 300  # of a module
MAX_MEDIAN = 110  # lines of a module, __init__ not counted


def modules(root: Path) -> dict[Path, str]:
    """Each module of the two programs and its text."""
    paths = sorted(path for package in TOP for path in (root / package).rglob("*.py"))
    return {path.relative_to(root): path.read_text() for path in paths}


def strays(root: Path) -> Iterator[str]:
    for package, expected in TOP.items():
        for path in (root / package).glob("*.py"):
            if path.name not in expected:
                yield f"{package}/{path.name}: move it into the folder of its idea"


def crowds(root: Path) -> Iterator[str]:
    folders: dict[Path, int] = {}
    for path in modules(root):
        folders[path.parent] = folders.get(path.parent, 0) + (path.name != "__init__.py")
    for folder, num in folders.items():
        if num > MAX_MODULES:
            yield f"{folder}: {num} modules; find the second idea in it"


def giants(root: Path) -> Iterator[str]:
    for path, text in modules(root).items():
        if (num := len(text.splitlines())) > MAX_LINES:
            yield f"{path}: {num} lines; find the second idea in it"


def median(root: Path) -> Iterator[str]:
    lines = [len(text.splitlines()) for path, text in modules(root).items() if path.name != "__init__.py"]
    if (middle := statistics.median(lines)) > MAX_MEDIAN:
        yield f"half of the modules have {middle:g} lines or more; split the large ones by their ideas"


def unsaid(root: Path) -> Iterator[str]:
    for path, text in modules(root).items():
        if path.name == "__init__.py" and not ast.get_docstring(ast.parse(text)):
            yield f"{path}: say in a docstring what belongs in this folder"
    for path in {path.parent for path in modules(root)}:
        if not (root / path / "__init__.py").is_file():
            yield f"{path}: it has no __init__.py that says what belongs in it"


def cycle(imports: Mapping[str, set[str]]) -> list[str] | None:
    """Names that import each other in a circle, the first one twice; None where there is none."""
    try:
        TopologicalSorter(imports).prepare()
    except CycleError as error:
        return list(error.args[1])
    return None


def between_folders(imports: Mapping[str, set[str]]) -> dict[str, set[str]]:
    """The same between folders: pipelines.plan, serving.cache and the others."""

    def folder(module: str) -> str:
        return ".".join(module.split(".")[:2])

    found: dict[str, set[str]] = {}
    for module, imported in imports.items():
        if module.split(".")[0] in TOP:
            found.setdefault(folder(module), set()).update({folder(one) for one in imported} - {folder(module)})
    return found


@pytest.fixture(scope="module")
def imports() -> dict[str, set[str]]:
    """Each module of the three packages, and the modules that it imports, also late or for types only."""
    graph = grimp.build_graph("pipelines", "serving", "benchmarks", cache_dir=None)
    return {module: graph.find_modules_directly_imported_by(module) for module in graph.modules}


def test_no_module_imports_itself_in_a_circle(imports: dict[str, set[str]]) -> None:
    assert len(imports) > 150
    assert cycle(imports) is None


def test_no_folder_imports_itself_in_a_circle(imports: dict[str, set[str]]) -> None:
    assert len(between_folders(imports)) > 25
    assert cycle(between_folders(imports)) is None


def test_a_circle_is_seen_between_modules_and_between_folders(imports: dict[str, set[str]]) -> None:
    back = {**imports, "serving.contract.manifest": imports["serving.contract.manifest"] | {"serving.start.boot"}}
    assert {"serving.contract.manifest", "serving.start.boot"} <= set(cycle(back) or ())
    assert {"serving.contract", "serving.start"} <= set(cycle(between_folders(back)) or ())


@pytest.mark.parametrize("rule", [strays, crowds, giants, median, unsaid])
def test_the_two_programs_keep_the_rule(rule: Callable[[Path], Iterator[str]]) -> None:
    assert modules(ROOT)
    assert not list(rule(ROOT))


def test_each_rule_is_seen_to_fail(tmp_path: Path) -> None:
    folder = tmp_path / "pipelines" / "plan"
    folder.mkdir(parents=True)
    for n in range(MAX_MODULES):
        (folder / f"module_{n}.py").touch()
    (folder / "__init__.py").write_text('"""What must run and why."""\n')
    assert [list(rule(tmp_path)) for rule in (strays, crowds, giants)] == [[], [], []]
    (folder / "one_more.py").write_text("\n" * (MAX_LINES + 1))
    (folder / "__init__.py").write_text("from pipelines import errors\n")
    (tmp_path / "pipelines" / "helpers.py").touch()
    assert list(strays(tmp_path)) == ["pipelines/helpers.py: move it into the folder of its idea"]
    assert list(crowds(tmp_path)) == ["pipelines/plan: 13 modules; find the second idea in it"]
    assert list(giants(tmp_path)) == ["pipelines/plan/one_more.py: 301 lines; find the second idea in it"]
    for n in range(MAX_MODULES):
        (folder / f"module_{n}.py").write_text("\n" * (MAX_MEDIAN + 1))
    assert list(median(tmp_path)) == ["half of the modules have 111 lines or more; split the large ones by their ideas"]
    assert sorted(unsaid(tmp_path)) == [
        "pipelines/plan/__init__.py: say in a docstring what belongs in this folder",
        "pipelines: it has no __init__.py that says what belongs in it",
    ]
