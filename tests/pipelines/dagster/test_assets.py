"""The Dagster shell over the demo matrix: the graph, the partitions, one row materialised for real."""

import shutil
from dataclasses import replace
from pathlib import Path

import dagster as dg
import pytest

from pipelines.dagster.assets import factory_assets
from pipelines.dagster.definitions import build_defs
from pipelines.dagster.lineage import lineage
from pipelines.dagster.partitions import Partitions
from pipelines.dagster.resources import Factory
from pipelines.dagster.source_assets import source_assets
from pipelines.matrix import load as matrices
from pipelines.matrix.values import Worker
from pipelines.plan.graph import Graph
from pipelines.plan.layout import graph
from tests.support.fleets import L40S, Fleet

DEMO = Path(__file__).parents[3] / "sku_matrix.yaml"
WORKER = Worker(
    cpu_arch="x86_64",
    cpu_features=frozenset({"avx2", "avx512_bf16"}),
    compilers=frozenset({"tensorrt-rtx", "openvino", "onnx"}),
)
MATRIX = """
schema_version: 1
models:
  tiny:
    task: embed
    source: ./tiny-bert
    release: "1.2.3"
    max_tokens: 64
    shapes: {min: [1, 1], opt: [8, 32], max: [64, 64]}
    calibration: {num_texts: 16, max_tokens: 64}
    retrieval: stdlib-docstrings
    runtimes: [cpu]
skus:
  h100:
    {compute_capability: "9.0", pci_ids: ["2330"], product: h100-80gb-hbm3, memory_gib: 80, gpus_per_node: 8,
     precisions: [fp16], compiler: tensorrt}
  cpu-x86-64: {cpu_arch: x86_64, cpu_features: [], precisions: [fp32], compiler: onnx}
build:
  - {models: [tiny], skus: [h100], precisions: [fp16], tp: [1]}
  - {models: [tiny], skus: [cpu-x86-64], precisions: [fp32], tp: [1]}
"""


@pytest.fixture(scope="module")
def demo() -> Graph:
    matrix = matrices.load(DEMO)
    return graph(matrix, matrix.rows, WORKER)


def test_the_graph_goes_from_export_to_publication(demo: Graph) -> None:
    partitions = Partitions(demo, lineage(demo))
    assets = [*source_assets(partitions.of), *factory_assets(partitions)]
    definitions = dg.Definitions(assets=assets, resources={"factory": Factory()})
    resolved = definitions.resolve_asset_graph()
    parents = {
        key.to_user_string(): {p.to_user_string() for p in resolved.get(key).parent_keys}
        for key in resolved.get_all_asset_keys()
    }
    sources = {"model_revision", "toolchain", "settings"}
    assert parents == {
        "fp32_onnx": sources,
        "typed_onnx": {"fp32_onnx", "toolchain", "settings"},
        "engine": {"fp32_onnx", "typed_onnx", "toolchain", "settings"},
        "verdict": {"fp32_onnx", "typed_onnx", "engine", "toolchain", "settings"},
        "manifest": {"verdict", "settings"},
        "image": {"manifest", "settings"},
        "publication": {"image", "settings"},
        **{source: set() for source in sources},
    }


def test_only_one_export_and_one_measurement_run_at_a_time_by_their_pools(demo: Graph) -> None:
    pools = {asset.key.to_user_string(): asset.op.pool for asset in factory_assets(Partitions(demo, lineage(demo)))}
    assert pools == {
        "fp32_onnx": "export",
        "typed_onnx": "export",
        "engine": "engine",
        "verdict": "measure",
        "manifest": "package",
        "image": "package",
        "publication": "publish",
    }


@pytest.mark.slow
def test_a_row_materialises_with_its_check_and_a_row_for_another_worker_is_skipped(
    tmp_path: Path, tiny_model: Path
) -> None:
    shutil.copytree(tiny_model, tmp_path / "tiny-bert")
    (tmp_path / "matrix.yaml").write_text(MATRIX)
    factory = Factory(
        matrix=str(tmp_path / "matrix.yaml"), store=str(tmp_path / "store"), dist=str(tmp_path / "dist"), jobs=1
    )
    current = factory.plan()
    by_name = {
        asset.key.to_user_string(): asset for asset in factory_assets(Partitions(current.plan.graph, current.lineages))
    }

    def materialize(names: list[str], partition: str) -> dg.ExecuteInProcessResult:
        chosen = [by_name[name] for name in names]
        sources = [asset for name, asset in by_name.items() if name not in names]
        return dg.materialize(
            [*chosen, *sources], selection=chosen, partition_key=partition, resources={"factory": factory}
        )

    row = materialize(["engine", "verdict"], "tiny__cpu-x86-64__fp32__tp1")
    assert row.success
    (check,) = row.get_asset_check_evaluations()
    assert check.passed
    events = {
        event.asset_key.to_user_string(): event for event in row.get_asset_materialization_events() if event.asset_key
    }
    metadata = events["verdict"].materialization.metadata
    assert metadata["cosine_min"].value > 0.9999  # type: ignore[operator]
    assert str(events["engine"].materialization.metadata["engine digest"].value).startswith("sha256:")

    skipped = materialize(["engine", "verdict"], "tiny__h100__fp16__tp1")
    assert skipped.success
    assert not skipped.get_asset_materialization_events()

    released = materialize(["manifest"], "tiny")
    assert released.success
    assert (tmp_path / "dist" / "tiny" / "model_manifest.yaml").is_file()
    assert (tmp_path / "dist" / "tiny" / "report.html").is_file()


@pytest.mark.slow
def test_images_are_of_the_manifest_that_was_packaged_and_fetch_from_the_repository_that_is_set(
    fleet: Fleet, instance: dg.DagsterInstance, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[dict[str, object]] = []

    def build_images(folder: Path, runtimes: object, **settings: object) -> tuple[()]:
        calls.append({"manifest": (folder / "model_manifest.yaml").read_bytes(), **settings})
        return ()

    monkeypatch.setattr("pipelines.image.build.build_images", build_images)
    before = (fleet.folder / "dist" / "tiny" / "model_manifest.yaml").read_bytes()
    fleet.edit("{min_realized_precision: 0.1}", "{min_realized_precision: 0.2}")  # the store has no such verdict yet
    fleet.materialize(instance, ("image", "tiny"))
    fetching = replace(fleet, images_fetch_from="oci://registry.example/models/{model}:1.2.3")
    fetching.materialize(instance, ("image", "tiny"))
    assert [call["manifest"] for call in calls] == [before, before]
    assert [call["repository"] for call in calls] == [None, "oci://registry.example/models/tiny:1.2.3"]
    assert calls[0]["kinds"] == ("full", "slim")


@pytest.mark.slow
def test_a_verdict_made_by_hand_has_the_manifest_follow_where_automation_is_switched_on(
    fleet: Fleet, instance: dg.DagsterInstance
) -> None:
    def requested(cursor: object = None) -> dg.EvaluateAutomationConditionsResult:
        return dg.evaluate_automation_conditions(build_defs(fleet.factory), instance, cursor=cursor)  # type: ignore[arg-type]

    idle = requested()
    idle = requested(idle.cursor)
    assert idle.total_requested == 0
    fleet.edit("{min_realized_precision: 0.1}", "{min_realized_precision: 0.2}")
    fleet.materialize(instance, ("verdict", L40S))
    after = requested(idle.cursor)
    assert after.get_requested_partitions(dg.AssetKey("manifest")) == {"tiny"}
    assert after.total_requested == 1
