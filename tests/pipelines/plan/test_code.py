"""A stage's key holds the code and the libraries that decide its bytes: the tables say what the imports say."""

from __future__ import annotations

import importlib.metadata
import os
import sys
from collections.abc import Iterator
from pathlib import Path

import grimp
import pytest

from pipelines.plan import code
from pipelines.plan.code import CODE
from pipelines.plan.toolchain import DISTRIBUTIONS
from pipelines.stage import STAGES
from tests.support.published import ROOT

OWN = {**STAGES, "judge": "pipelines.gate"}
# What carries a request and its failure, and what fetches a model: they decide no bytes.
CARRIERS = {"pipelines.errors", "pipelines.stage", "pipelines.remote", "pipelines.tasks"}
# What a stage finds through the row of its task.
BY_TASK = {"export": "pipelines.recipes", "quantize": "pipelines.recipes"}
# Names, types and tables of the server: a stage takes no behaviour from them.
VALUES = {
    "serving.contract.profile",
    "serving.errors",
    "serving.backends.base",
    "serving.tasks.base",
    "serving.tasks.table",
}
# Distributions by what they are imported as. None: no key need hold it.
IMPORTED_AS = {
    "PIL": "pillow",
    "google": "protobuf",
    "modelopt": "nvidia-modelopt",
    "ir_measures": "ir-measures",
    "boto3": None,  # these four fetch files whose digests or revisions are in the key
    "botocore": None,
    "huggingface_hub": None,
    "requests": None,
    "msgspec": None,  # reads and writes values that are checked by type
    "blake3": None,
    # An engine is bound to the library that compiled it: its bytes are in the key of whoever loads it.
    "tensorrt": None,
    "tensorrt_rtx_bindings": None,
    "cuda": None,
}


@pytest.fixture(scope="module")
def imports() -> grimp.ImportGraph:
    return grimp.build_graph("pipelines", "serving", include_external_packages=True, cache_dir=None)


def taken(imports: grimp.ImportGraph, stage: str) -> set[str]:
    """The factory's modules that a stage's code imports, near or far, and what they import of others."""
    own = OWN[stage]
    waiting = [own, *(imports.find_descendants(own) if stage != "texts" else ())]
    if stage in BY_TASK:
        waiting += imports.find_descendants(BY_TASK[stage])
    seen = set(waiting)
    while waiting:
        for module in imports.find_modules_directly_imported_by(waiting.pop()):
            if module not in seen and not any(within(module, carrier) for carrier in CARRIERS):
                seen.add(module)
                if module.startswith("pipelines."):
                    waiting.append(module)
    return seen


def within(module: str, package: str) -> bool:
    return f"{module}.".startswith(f"{package}.")


def dotted(part: str) -> str:
    return part.removesuffix(".py").replace("/", ".")


def uncovered(modules: set[str], stage: str) -> Iterator[str]:
    for module in sorted(modules):
        ours = module.startswith(("pipelines.", "serving.")) and module not in VALUES
        if ours and not any(within(module, dotted(part)) for part in CODE[stage]):
            yield module


@pytest.mark.parametrize("stage", OWN)
def test_a_stages_key_holds_the_code_that_it_imports_and_no_other(imports: grimp.ImportGraph, stage: str) -> None:
    modules = taken(imports, stage)
    assert not list(uncovered(modules, stage))
    idle = [part for part in CODE[stage] if not any(within(module, dotted(part)) for module in modules)]
    assert not idle


def test_code_that_a_table_lacks_is_seen(imports: grimp.ImportGraph) -> None:
    assert "pipelines.measure" in set(uncovered(taken(imports, "measure"), "compile"))


@pytest.mark.parametrize("stage", ["texts", "export", "quantize", "shard", "measure", "judge"])
def test_a_stages_key_holds_the_version_of_every_library_that_it_imports(
    imports: grimp.ImportGraph, stage: str
) -> None:
    modules = taken(imports, stage)
    for part in CODE[stage]:
        if part.startswith("serving/"):
            modules |= {m for m in imports.modules if within(m, dotted(part)) and m.startswith("serving.")}
    external = {
        found
        for module in modules
        if module.startswith(("pipelines.", "serving."))
        for found in imports.find_modules_directly_imported_by(module)
        if not found.startswith(("pipelines", "serving")) and found not in sys.stdlib_module_names
    }
    names = {IMPORTED_AS.get(name, name) for name in external} - {None}
    assert names <= set(DISTRIBUTIONS[stage])


def test_every_library_of_the_tables_is_one_that_a_registry_has_by_this_name() -> None:
    """A name that is spelled wrong would be `not installed` for ever, and no upgrade would be seen."""
    elsewhere = {"tensorrt", "python"}
    names = {name for part in DISTRIBUTIONS.values() for name in part} - elsewhere
    assert {name for name in names if not importlib.metadata.distribution(name)} == set()


def test_a_digest_is_of_what_is_on_disk_now_and_reads_nothing_twice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = tmp_path / "serving" / "tasks"
    package.mkdir(parents=True)
    (package / "embed.py").write_text("a = 1\n")
    before = code.digest("serving/tasks", tmp_path)
    with monkeypatch.context() as patched:
        patched.setattr(Path, "read_bytes", lambda _: pytest.fail("it was read again"))
        assert code.digest("serving/tasks", tmp_path) == before
    (package / "embed.py").write_text("a = 2\n")  # an upgrade, while this process goes on
    os.utime(package / "embed.py", (2, 2))
    after = code.digest("serving/tasks", tmp_path)
    assert after != before
    (package / "clip.py").write_text("")
    assert code.digest("serving/tasks", tmp_path) not in {before, after}


def test_a_digest_depends_on_no_path_and_no_time(tmp_path: Path) -> None:
    for folder in ("one", "two"):
        (tmp_path / folder / "serving").mkdir(parents=True)
        (tmp_path / folder / "serving" / "a.py").write_text("a = 1\n")
    os.utime(tmp_path / "two" / "serving" / "a.py", (1, 1))
    assert code.digest("serving", tmp_path / "one") == code.digest("serving", tmp_path / "two")


def test_every_part_of_every_stage_is_there() -> None:
    assert set(CODE) == set(OWN)
    assert all((ROOT / part).exists() for parts in CODE.values() for part in parts)
