"""200 rows with real stages: one cold build, nothing at the second, and each single change rebuilds its dependants.

Two tiny models for 100 SKUs each: 49 of compute capability 8.6 and 49 of 8.9 (one engine each, 98 verdicts), a CPU for
OpenVINO and any CPU. What a change makes stale is compared with the whole set of steps, so that nothing else may be.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path

import pytest

from pipelines.build.build_matrix import build
from pipelines.build.project import Project
from pipelines.build.result import BuildResult
from pipelines.dagster.lineage import lineage, runtime_sources
from pipelines.image.runtime import CONTAINERS
from pipelines.plan import code
from pipelines.plan.staleness import states
from tests.support.fleets import new_release

pytestmark = pytest.mark.slow
MODELS = ("one", "two")
NUM_SKUS = 49  # of each compute capability
CAPABILITIES = {"8.6": "ampere", "8.9": "ada"}


def matrix() -> str:
    """The file: JSON is YAML."""
    model = {
        "task": "embed",
        "release": "1.2.3",
        "max_tokens": 64,
        "shapes": {"min": [1, 1], "opt": [2, 16], "max": [4, 64]},
        "calibration": {"num_texts": 16, "max_tokens": 64},
        "golden": {"num_texts": 32},
        "retrieval": "stdlib-docstrings",
        "runtimes": ["rtx", "cpu"],
    }
    gpus = {
        f"{name}-{i}": {
            "compute_capability": capability,
            "pci_ids": [f"{'2a' if name == 'ampere' else '2b'}{i:02x}"],
            "product": f"{name}-{i}",
            "memory_gib": 48,
            "gpus_per_node": 8,
            "precisions": ["fp16"],
            "compiler": "tensorrt-rtx",
        }
        for capability, name in CAPABILITIES.items()
        for i in range(NUM_SKUS)
    }
    cpu = {"cpu_arch": "x86_64", "cpu_features": [], "precisions": ["fp32"], "compiler": "onnx"}
    avx2 = {**cpu, "cpu_features": ["avx2"], "compiler": "openvino"}
    return json.dumps(
        {
            "schema_version": 1,
            "models": {name: {**model, "source": f"./{name}"} for name in MODELS},
            "skus": {**gpus, "cpu-avx2": avx2, "cpu-x86-64": cpu},
            "gates": {"embed": {"fp16": {"min_realized_precision": 0.1}, "fp32": {"min_speed_ratio": None}}},
            "build": [
                {"models": list(MODELS), "skus": list(gpus), "precisions": ["fp16"], "tp": [1]},
                {"models": list(MODELS), "skus": ["cpu-avx2", "cpu-x86-64"], "precisions": ["fp32"], "tp": [1]},
            ],
        },
        indent=1,
    )


@dataclass(frozen=True, kw_only=True)
class Plant:
    folder: Path

    def project(self) -> Project:
        return Project.open(self.folder / "matrix.yaml", store=self.folder / "store", dist=self.folder / "dist", jobs=2)

    def stale(self) -> set[str]:
        project = self.project()
        return {name for name, state in states(project.graph(), project.store).items() if state.record is None}

    def build(self) -> BuildResult:
        project = self.project()
        return build(project, project.plan(), with_images=False)

    def steps(self, *globs: str) -> set[str]:
        """All steps whose name matches one of the globs; a glob that matches none is a mistake of the test."""
        names = list(self.project().graph().steps)
        assert all(any(fnmatchcase(name, glob) for name in names) for glob in globs), globs
        return {name for name in names if any(fnmatchcase(name, glob) for glob in globs)}

    def edit(self, change: Callable[[dict], None]) -> None:  # type: ignore[type-arg]
        path = self.folder / "matrix.yaml"
        raw = json.loads(path.read_text())
        change(raw)
        path.write_text(json.dumps(raw, indent=1))


@pytest.fixture(scope="module")
def cold(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> Plant:
    folder = tmp_path_factory.mktemp("plant")
    for name in MODELS:
        shutil.copytree(tiny_model, folder / name)
    (folder / "matrix.yaml").write_text(matrix())
    differ(folder / "two")
    plant = Plant(folder=folder)
    result = plant.build()
    assert result.exit_code == 0
    assert len(result.steps) > 200
    assert sum(step.step.stage == "judge" for step in result.steps.values()) == 200
    assert all(step.built for step in result.steps.values())
    return plant


def differ(model: Path) -> None:
    """Give a model weights of its own."""
    from safetensors.numpy import load_file, save_file

    weights = load_file(model / "model.safetensors")
    save_file({name: tensor * 1.01 for name, tensor in weights.items()}, model / "model.safetensors", {"format": "pt"})


@pytest.fixture
def plant(cold: Plant, tmp_path: Path) -> Plant:
    """The same, to be changed: sources and matrix are copies, the store is shared with links."""
    shutil.copytree(cold.folder, tmp_path / "plant", copy_function=link)
    return Plant(folder=tmp_path / "plant")


def link(source: str, target: str) -> None:
    """A blob never changes, so that a link will do; everything else is copied."""
    if "/blobs/" in source:
        Path(target).hardlink_to(source)
    else:
        shutil.copy2(source, target)


def test_a_second_build_builds_nothing(plant: Plant) -> None:
    result = plant.build()
    assert [name for name, step in result.steps.items() if not step.reused] == []
    assert all(model.reused for model in result.models)


def test_other_bytes_of_a_model_rebuild_all_of_that_model_and_nothing_of_the_other(plant: Plant) -> None:
    (plant.folder / "one" / "config_sentence_transformers.json").write_text('{"prompts": {"query": "q: "}}')
    expected = plant.steps("*/one", "*/one__*")
    assert plant.stale() == expected
    assert len(expected) == 110
    result = plant.build()
    assert {name for name, step in result.steps.items() if step.built} <= expected
    assert plant.stale() == set()


def test_a_task_setting_of_a_model_rebuilds_all_of_that_model(plant: Plant) -> None:
    plant.edit(lambda raw: raw["models"]["one"].update(matryoshka=True))
    assert plant.stale() == plant.steps("*/one", "*/one__*")


def test_another_shape_recompiles_engines_of_that_model_from_its_export_on(plant: Plant) -> None:
    plant.edit(lambda raw: raw["models"]["two"]["shapes"].update(opt=[4, 16]))
    assert plant.stale() == plant.steps("*/two", "*/two__*")


def test_other_calibration_texts_rebuild_what_is_quantized_and_not_fp32(plant: Plant) -> None:
    plant.edit(lambda raw: raw["models"]["one"]["calibration"].update(num_texts=8))
    assert plant.stale() == plant.steps("quantize/one__*", "*/one__fp16__*", "judge/one__*__fp16__*")


def test_another_compute_capability_of_a_sku_rebuilds_its_own_rows_only(plant: Plant) -> None:
    plant.edit(lambda raw: raw["skus"]["ada-7"].update(compute_capability="8.6"))
    # The engine for 8.6 is there already, and was judged on the same ONNX: each row's verdict names another engine.
    assert plant.stale() == plant.steps("judge/*__ada-7__*")


def test_a_threshold_judges_its_precision_again_and_builds_no_engine(plant: Plant) -> None:
    plant.edit(lambda raw: raw["gates"]["embed"]["fp16"].update(min_realized_precision=0.2))
    expected = plant.steps("judge/*__fp16__*")
    assert plant.stale() == expected
    result = plant.build()
    assert {name for name, step in result.steps.items() if step.built} == expected
    assert len(expected) == 196


def test_a_new_tensorrt_rebuilds_its_engines_and_their_verdicts(
    plant: Plant, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(new_release(tmp_path / "site", "tensorrt-rtx-cu13-bindings", "99.1"))
    assert plant.stale() == plant.steps("compile/*tensorrt-rtx*", "judge/*__fp16__*")


def test_a_new_openvino_recompiles_its_engines_and_measures_all_again(
    plant: Plant, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(new_release(tmp_path / "site", "openvino", "2099.1"))
    assert plant.stale() == plant.steps("compile/*openvino*", "measure/*", "judge/*")


def other_code(monkeypatch: pytest.MonkeyPatch, changed: str) -> None:
    """As after an upgrade that changed this package."""
    known = code.digest
    monkeypatch.setattr(code, "digest", lambda part: "sha256:other" if part == changed else known(part))


def test_other_code_of_a_stage_reruns_that_stage_and_what_takes_from_it(
    plant: Plant, monkeypatch: pytest.MonkeyPatch
) -> None:
    other_code(monkeypatch, "pipelines/quantize")
    fp16 = ("quantize/*", "compile/*__fp16__*", "measure/*__fp16__*", "judge/*__fp16__*")
    assert plant.stale() == plant.steps(*fp16)


def test_other_judging_code_measures_and_judges_again_and_builds_nothing(
    plant: Plant, monkeypatch: pytest.MonkeyPatch
) -> None:
    other_code(monkeypatch, "serving/backends")
    assert plant.stale() == plant.steps("measure/*", "judge/*")


def test_another_gate_judges_again_and_measures_nothing(plant: Plant, monkeypatch: pytest.MonkeyPatch) -> None:
    other_code(monkeypatch, "pipelines/gate")
    assert plant.stale() == plant.steps("judge/*")


def test_another_base_image_makes_the_images_due_and_no_step(plant: Plant, tmp_path: Path) -> None:
    containers = tmp_path / "containers"
    shutil.copytree(CONTAINERS, containers)
    before = runtime_sources(("cpu",), containers)
    (containers / "images.lock").write_text("another base\n")
    assert before != runtime_sources(("cpu",), containers)
    lineages = lineage(plant.project().graph())
    assert {asset for (asset, _), entry in lineages.items() if "containers" in entry.settings} == {"image"}
    assert plant.stale() == set()


def test_a_new_row_builds_only_itself(plant: Plant) -> None:
    def more(raw: dict) -> None:  # type: ignore[type-arg]
        raw["skus"]["ada-new"] = {**raw["skus"]["ada-1"], "pci_ids": ["2bff"], "product": "ada-new"}
        raw["build"][0]["skus"].append("ada-new")

    plant.edit(more)
    assert plant.stale() == plant.steps("judge/*__ada-new__*")
