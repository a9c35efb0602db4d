"""Where a test lies: tests/pipelines/plan/test_layout.py tests pipelines/plan/layout.py, and so on for each module."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from tests.support.published import ROOT

MIRRORED = ("pipelines", "serving", "benchmarks")
# What crosses, what is no Python package, and what the tests themselves are made of.
OTHERS = {"walks", "support", "house", "clients", "operator", "containers", "deploy", "examples"}


def strays(root: Path) -> Iterator[str]:
    """Test files that mirror no module. Of one module there may be several: test_select.py, test_select_table.py."""
    for path in sorted((root / "tests").rglob("test_*.py")):
        relative = path.relative_to(root / "tests")
        folder, name = relative.parent, path.stem.removeprefix("test_")
        if relative.parts[0] in OTHERS:
            continue
        mirrored = [module.stem for module in (root / folder).glob("*.py")]
        mirrored += [package.parent.name for package in (root / folder).glob("*/__init__.py")]
        mirrored += [folder.name]  # the folder's __init__, where a stage has its `run`
        if relative.parts[0] not in MIRRORED or not any(f"{name}_".startswith(f"{stem}_") for stem in mirrored):
            yield f"tests/{relative}: no {folder}/{name}.py; name it after its module, or move it to tests/walks"


def test_every_test_file_mirrors_a_module() -> None:
    assert not list(strays(ROOT))


def test_a_test_of_no_module_is_seen(tmp_path: Path) -> None:
    for path in ("pipelines/plan/layout.py", "pipelines/plan/__init__.py", "pipelines/compile/__init__.py"):
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).touch()
    fine = ["plan/test_layout.py", "plan/test_layout_large.py", "compile/test_compile.py", "test_plan.py"]
    for path in [*fine, "plan/test_lay.py", "compile/test_layout.py"]:
        (tmp_path / "tests/pipelines" / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "tests/pipelines" / path).touch()
    (tmp_path / "tests/walks").mkdir()
    (tmp_path / "tests/walks/test_walk.py").touch()
    (tmp_path / "tests/test_loose.py").touch()
    assert [line.split(":")[0] for line in strays(tmp_path)] == [
        "tests/pipelines/compile/test_layout.py",
        "tests/pipelines/plan/test_lay.py",
        "tests/test_loose.py",
    ]
