"""What the shell takes from Dagster that has no public name. Each is a thing that the next release may take away."""

from __future__ import annotations

import ast
import importlib
from pathlib import Path

import dagster as dg
import pytest

from tests.support.services import ROOT

# (module of pipelines/dagster, private module, name): what it is for
PRIVATE_IMPORTS = {
    ("sensors", "dagster._core.definitions.assets.graph.asset_graph_subset", "AssetGraphSubset"): (
        "launch partitions of several assets as one backfill"
    ),
    ("source_assets", "dagster._core.definitions.data_version", "DATA_VERSION_TAG"): (
        "record the data version of a source asset"
    ),
}


def private_imports(path: Path) -> list[tuple[str, str, str]]:
    tree = ast.parse(path.read_text())
    imports = [node for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)]
    return [
        (path.stem, node.module, alias.name)
        for node in imports
        for alias in node.names
        if node.module is not None and node.module.startswith("dagster._")
    ]


def test_no_other_private_name_of_dagster_is_imported_and_each_says_why() -> None:
    modules = sorted((ROOT / "pipelines" / "dagster").glob("*.py"))
    imports = [entry for path in modules for entry in private_imports(path)]
    assert sorted(imports) == sorted(PRIVATE_IMPORTS)
    for module, source, _ in imports:
        lines = (ROOT / "pipelines" / "dagster" / f"{module}.py").read_text().splitlines()
        (line,) = (number for number, text in enumerate(lines) if text.startswith(f"from {source} import"))
        assert lines[line - 1].startswith("# Private, no public name: "), f"{module}: say above {lines[line]!r} why"


def gone(name: str, purpose: str) -> str:
    return f"Dagster {dg.__version__} has no {name}: without it pipelines/dagster cannot {purpose}"


@pytest.mark.parametrize(("module", "source", "name"), PRIVATE_IMPORTS)
def test_the_private_names_are_still_there(module: str, source: str, name: str) -> None:
    words = gone(f"{source}.{name}", PRIVATE_IMPORTS[module, source, name])
    try:
        owner = importlib.import_module(source)
    except ImportError:
        pytest.fail(words)
    assert hasattr(owner, name), words


def test_the_private_methods_are_still_there() -> None:
    with dg.DagsterInstance.ephemeral() as instance:
        for owner, name, purpose in (
            (dg.RunRequest, "for_asset_graph_subset", "launch a backfill"),
            (instance, "event_log_storage", "ask for the versions of all partitions at once"),
            (instance.event_log_storage, "get_latest_tags_by_partition", "ask for all versions at once"),
        ):
            assert hasattr(owner, name), gone(name, purpose)
