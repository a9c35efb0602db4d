"""A model whose weights do not fit one ONNX file, through `enginery build`: a small CLIP, and a lower limit."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from pipelines import stage
from pipelines.build.build_matrix import build
from pipelines.build.project import Project
from pipelines.build.result import BuildResult
from pipelines.errors import CompileError, StoreError
from pipelines.plan.staleness import Staleness
from pipelines.stage import StageRequest
from pipelines.store.store import Blob, Store
from tests.support.clips import SHAPES, draw, save_clip

pytestmark = pytest.mark.slow

MATRIX = """schema_version: 1
models:
  tiny:
    task: clip
    source: ./model
    pictures: ./pictures
    release: "0.1.0"
    shapes: {min: [1, 1], opt: [2, 8], max: [6, 40]}
    golden: {num_texts: 32}
skus:
  l40s:
    {compute_capability: "8.9", pci_ids: ["26b9"], product: l40s, memory_gib: 48, gpus_per_node: 8,
      precisions: [fp16, fp8], compiler: tensorrt-rtx}
  cpu-avx2: {cpu_arch: x86_64, cpu_features: [avx2, fma], precisions: [fp32], compiler: openvino}
build:
  - {models: [tiny], skus: [l40s], precisions: [fp16]}
  - {models: [tiny], skus: [cpu-avx2], precisions: [fp32]}
gates:
  clip:
    fp32: {min_speed_ratio: null, max_latency_ratio: null}
"""
# The tower of pictures exceeds the limit in fp32, and not in fp16; that of texts does not: as in a ViT-H/14.
LOW_LIMIT = """import pipelines.recipes.exporter.to_onnx, pipelines.onnx_graph.external_data
pipelines.recipes.exporter.to_onnx.MAX_MODEL_BYTES = 400_000
pipelines.onnx_graph.external_data.MIN_EXTERNAL_BYTES, pipelines.onnx_graph.external_data.LARGE_BYTES = 1024, 100_000
"""


@dataclass(frozen=True, kw_only=True)
class Built:
    """A matrix and its store, and what one build of it did."""

    project: Project
    result: BuildResult

    @property
    def store(self) -> Store:
        return self.project.store

    def outputs(self, stage: str, subject: str) -> Mapping[str, Blob]:
        record = self.store.latest(stage, subject)
        assert record is not None
        return record.outputs

    def metrics(self, subject: str) -> dict[str, Any]:
        (blob,) = self.outputs("measure", subject).values()
        return dict(json.loads(self.store.path(blob.digest).read_bytes()))


def run_build(folder: Path) -> Built:
    project = Project.open(folder / "matrix.yaml", store=folder / "store", dist=folder / "dist")
    return Built(project=project, result=build(project, project.plan(), with_images=False))


def prepare(folder: Path) -> Path:
    folder.mkdir()
    save_clip(folder / "model", seed=0)
    draw().write_pictures(folder / "pictures", 0, {"golden": 4, "calibration": 2, "test": 6})
    (folder / "matrix.yaml").write_text(MATRIX)
    return folder


@pytest.fixture(scope="module")
def stages_with_a_low_limit(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Every stage is a process of its own: the limit is lowered in each as it starts."""
    folder = tmp_path_factory.mktemp("site")
    (folder / "sitecustomize.py").write_text(LOW_LIMIT)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", os.pathsep.join([str(folder), os.environ.get("PYTHONPATH", "")]))
        yield folder


@pytest.fixture(scope="module")
def large(stages_with_a_low_limit: Path, tmp_path_factory: pytest.TempPathFactory) -> Built:
    return run_build(prepare(tmp_path_factory.mktemp("large") / "work"))


@pytest.fixture(scope="module")
def whole(large: Built, tmp_path_factory: pytest.TempPathFactory) -> Built:
    """The same model as one file a tower; built after `large`, whose limit is taken back here."""
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("PYTHONPATH")
        return run_build(prepare(tmp_path_factory.mktemp("whole") / "work"))


def test_the_tower_that_is_too_large_has_external_data(large: Built, whole: Built) -> None:
    assert {name for name in large.outputs("export", "tiny") if ".onnx" in name} == {
        "text.onnx",
        "image.onnx",
        "image.onnx.data",
    }
    assert large.outputs("quantize", "tiny__fp16").keys() == {"text.onnx", "image.onnx", "image.onnx.data"}
    assert whole.outputs("quantize", "tiny__fp16").keys() == {"text.onnx", "image.onnx"}
    fp32, fp16 = (
        large.outputs(*step)["image.onnx.data"].size_bytes for step in (("export", "tiny"), ("quantize", "tiny__fp16"))
    )
    assert 400_000 < fp32 < 2.2 * fp16


def test_its_engines_ship(large: Built) -> None:
    (model,) = large.result.models
    assert large.result.exit_code == 0
    assert set(model.shipped) == {"tiny__l40s__fp16__tp1", "tiny__cpu-avx2__fp32__tp1"}


def test_a_generic_engine_which_is_one_file_is_refused_with_a_remedy(large: Built, tmp_path: Path) -> None:
    inputs = {
        name: large.store.path(blob.digest) for name, blob in large.outputs("export", "tiny").items() if "onnx" in name
    }
    params = {"task": "clip", "compiler": "onnx", "precision": "fp32", "shapes": SHAPES}
    request = StageRequest(stage="compile", subject="a test", params=params, inputs=inputs, output_dir=tmp_path)
    with pytest.raises(CompileError, match="one ONNX file, which ends at 2 GiB") as caught:
        stage.run(request)
    assert "leave this SKU out for it, and for CPUs choose one whose compiler is openvino" in str(caught.value)


@pytest.mark.parametrize("subject", ["tiny__fp16__typed-onnx", "tiny__fp32__openvino-avx2"])
def test_it_is_judged_as_the_same_model_in_one_file_is(large: Built, whole: Built, subject: str) -> None:
    ours, theirs = large.metrics(subject), whole.metrics(subject)
    for metrics in (ours, theirs):
        metrics.pop("speed", None)
        metrics.pop("size_bytes")
    assert ours == theirs
    assert ours["cosine"]["min"] > 0.999


def test_nothing_is_built_again(large: Built, stages_with_a_low_limit: Path) -> None:
    again = run_build(large.project.matrix.source.parent)
    assert all(step.reused for step in again.result.steps.values())
    assert all(model.reused for model in again.result.models)


def test_another_folder_gives_the_same_bytes(large: Built, stages_with_a_low_limit: Path, tmp_path: Path) -> None:
    other = run_build(prepare(tmp_path / "a folder with a longer name"))
    for step in (
        ("export", "tiny"),
        ("quantize", "tiny__fp16"),
        ("compile", "tiny__fp16__tensorrt-rtx-sm89__tp1"),
        ("compile", "tiny__fp32__openvino-avx2__tp1"),
    ):
        assert other.outputs(*step) == large.outputs(*step), step


def test_a_damaged_data_file_is_found_before_anything_opens_it(large: Built, tmp_path: Path) -> None:
    blob = large.outputs("export", "tiny")["image.onnx.data"]
    store = Store(tmp_path)
    (tmp_path / "copy").write_bytes(large.store.path(blob.digest).read_bytes()[:-1] + b"\xff")
    damaged = store.path(blob.digest)
    damaged.parent.mkdir(parents=True)
    (tmp_path / "copy").rename(damaged)
    with pytest.raises(StoreError, match="run the build again"):
        store.verified(blob)


def test_a_changed_weight_changes_what_takes_it_and_says_so(large: Built, stages_with_a_low_limit: Path) -> None:
    folder = large.project.matrix.source.parent
    path = folder / "model" / "model.safetensors"
    weights = load_file(path)
    before = path.read_bytes()
    name = "vision_model.encoder.layers.0.mlp.fc1.weight"
    weights[name] = (weights[name] * np.float32(1.5)).astype(np.float32)
    save_file(weights, path, metadata={"format": "pt"})
    try:
        project = Project.open(folder / "matrix.yaml", store=folder / "store", dist=folder / "dist")
        plan = project.plan()
        assert stale(plan.states) >= {"export/tiny"}
        before_export = large.outputs("export", "tiny")
        build(project, plan, with_images=False)
        after_export = large.outputs("export", "tiny")
    finally:
        path.write_bytes(before)
    assert {name for name in after_export if after_export[name] != before_export[name]} == {
        "image.onnx.data",
        "golden.json",
        "proof.json",
    }
    # The graph's own bytes are the same: only its data tells the quantize step that it has to run again.
    record = large.store.latest("quantize", "tiny__fp16")
    assert record is not None
    assert record.key_inputs["inputs"]["image.onnx"] == before_export["image.onnx"].digest
    assert record.key_inputs["inputs"]["image.onnx.data"] == after_export["image.onnx.data"].digest


def stale(found: Mapping[str, Staleness]) -> set[str]:
    return {step for step, state in found.items() if state.record is None}
