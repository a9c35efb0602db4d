"""Rows that other workers build: planned as they plan them, reused and packaged where their hardware is not."""

from __future__ import annotations

import os
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from pipelines.build.build_matrix import build
from pipelines.build.project import Project
from pipelines.cli.plan_view import View, as_json
from pipelines.dagster.lineage import AssetPartition, lineage, source_versions
from pipelines.matrix.values import Worker
from pipelines.plan import workers
from pipelines.plan.workers import FOLDER, WorkerSpec, builders, registered
from pipelines.store.store import Store
from tests.support.fleets import CPU, H100, L40S, MATRIX, Fleet, new_release, stale
from tests.support.plans import HERE, built
from tests.support.services import ROOT, started, until

WITH_H100 = replace(HERE, gpu_pci_ids=("2330",), compilers=HERE.compilers | {"tensorrt"})
WITH_L40S = replace(HERE, gpu_pci_ids=("26b9",))
AVX2 = "tiny__cpu-avx2__fp32__tp1"


def spec(machine: Worker, *serves: str, **versions: str) -> WorkerSpec:
    """A worker like this machine, but for its hardware and some versions."""
    ours = workers.spec_here(machine, serves)
    return replace(ours, versions={**ours.versions, **{k.replace("_", "-"): v for k, v in versions.items()}})


@pytest.fixture
def fleet(tmp_path: Path, tiny_model: Path) -> Fleet:
    return Fleet.at(tmp_path / "fleet", tiny_model)


def project(fleet: Fleet, machine: Worker = HERE, dist: str = "dist") -> Project:
    opened = Project.open(fleet.folder / "matrix.yaml", store=fleet.folder / "store", dist=fleet.folder / dist)
    return replace(opened, worker=machine)


def rows_of(shop: Project) -> dict[str, dict[str, object]]:
    view = View.of(shop.plan(), shop.store, jobs=2, memory_bytes=2**40)
    return {row["row"]: row for row in as_json(view)["rows"]}


def test_equal_workers_have_one_registration_and_the_newest_comes_first(tmp_path: Path) -> None:
    store = Store(tmp_path)
    assert registered(store) == ()
    for what in (spec(WITH_H100, "h100"), spec(WITH_L40S, "l40s"), spec(WITH_H100, "h100")):
        workers.register(store, what)
    assert [one.spec.skus for one in registered(store)] == [("h100",), ("l40s",)]
    assert registered(store)[0].spec == spec(WITH_H100, "h100")


def test_a_registration_that_is_damaged_or_not_what_its_name_says_counts_for_nothing(tmp_path: Path) -> None:
    store = Store(tmp_path)
    workers.register(store, spec(WITH_H100, "h100"))
    (path,) = (tmp_path / FOLDER).iterdir()
    text = path.read_text()
    (tmp_path / FOLDER / f"{'0' * 64}.json").write_text(text)
    (tmp_path / FOLDER / f"{'1' * 64}.json").write_text(text[:100])
    assert len(registered(store)) == 1
    path.write_text(text.replace("2330", "2331"))
    assert registered(store) == ()


def test_a_row_is_the_newest_workers_that_serves_it_and_has_its_gpu(fleet: Fleet) -> None:
    rows, store = project(fleet).matrix.rows, Store(fleet.folder / "store")
    for what in (
        spec(WITH_H100, "h100", tensorrt="11.0"),
        spec(WITH_H100, "h100", tensorrt="11.1"),
        spec(WITH_H100, "l40s", tensorrt="11.2"),  # it has the GPU, but serves another SKU
        spec(HERE, "h100", tensorrt="11.3"),  # it says that it serves it, and has none
        spec(HERE, "l40s"),  # compiles ahead of time, as this machine can
    ):
        workers.register(store, what)
    found = builders(rows, HERE, registered(store))
    assert {name: one.spec.versions["tensorrt"] for name, one in found.items()} == {H100: "11.1"}
    assert builders(rows, WITH_H100, registered(store)) == {}


def test_a_row_that_a_worker_can_build_says_so_until_it_has(fleet: Fleet) -> None:
    shop = project(fleet)
    assert rows_of(shop)[H100]["refusal"] == "needs a worker with h100"
    workers.register(shop.store, spec(WITH_H100, "h100", tensorrt="11.0"))
    (known,) = registered(shop.store)
    row = rows_of(shop)[H100]
    assert row["plan"] == "skip"
    assert row["worker"] == f"{known.host}, since {known.time[:16]}"
    assert row["refusal"] == f"built by worker {known.host}, which has not finished it yet"
    built(shop.graph(), shop.store)  # by the worker, and by this machine
    assert {row["plan"] for row in rows_of(shop).values()} == {"reuse"}


def test_the_worker_itself_plans_the_very_steps_that_others_plan_for_it(fleet: Fleet) -> None:
    shop = project(fleet)
    workers.register(shop.store, spec(WITH_H100, "h100"))
    built(project(fleet, WITH_H100).graph([H100]), shop.store)
    assert rows_of(shop)[H100]["plan"] == "reuse"


def test_an_upgraded_worker_makes_its_rows_due_and_says_which_version_is_new(fleet: Fleet) -> None:
    shop = project(fleet)
    workers.register(shop.store, spec(WITH_H100, "h100", tensorrt="11.0"))
    built(shop.graph(), shop.store)
    assert stale(shop) == {}
    workers.register(shop.store, spec(WITH_H100, "h100", tensorrt="11.1"))
    why = "compile/tiny__fp16__tensorrt-sm90__tp1: toolchain.tensorrt: 11.0 -> 11.1"
    assert str(rows_of(shop)[H100]["refusal"]).endswith("; toolchain.tensorrt: 11.0 -> 11.1")
    due = stale(shop)
    assert list(due[AssetPartition("engine", H100)].reasons) == [why]
    assert ("engine", L40S) not in due
    assert source_versions(lineage(shop.graph()))["toolchain"]["tensorrt@h100"] == "tensorrt 11.1"


def test_a_worker_with_other_exporters_is_named_with_the_remedy(fleet: Fleet) -> None:
    shop = project(fleet)
    workers.register(shop.store, spec(WITH_H100, "h100", torch="1.0"))
    assert "torch 1.0 there, " in str(rows_of(shop)[H100]["refusal"])
    assert "install the same versions" in str(rows_of(shop)[H100]["refusal"])


def test_two_workers_with_other_versions_of_one_compiler_each_have_their_own_step(fleet: Fleet) -> None:
    h200 = (
        '  h200:\n    {compute_capability: "9.0", pci_ids: ["2335"], product: h200, memory_gib: 141, gpus_per_node: 8,'
    )
    fleet.edit("  l40s:\n", f"{h200}\n     precisions: [fp16], compiler: tensorrt}}\n  l40s:\n")
    fleet.edit("skus: [h100, l40s]", "skus: [h100, h200, l40s]")
    shop = project(fleet)
    workers.register(shop.store, spec(WITH_H100, "h100", tensorrt="11.0"))
    workers.register(shop.store, spec(replace(WITH_H100, gpu_pci_ids=("2335",)), "h200", tensorrt="11.1"))
    graph = shop.graph()
    compiled = {
        plan.row.sku.name: graph.steps[plan.engine.step].toolchain for plan in graph.rows if plan.engine is not None
    }
    assert (compiled["h100"], compiled["h200"]) == ({"tensorrt": "11.0"}, {"tensorrt": "11.1"})


def test_a_worker_that_is_gone_makes_no_row_unbuildable_that_this_machine_can_build(fleet: Fleet) -> None:
    shop = project(fleet)
    before = rows_of(shop)[L40S]
    workers.register(shop.store, spec(WITH_L40S, "l40s"))
    assert rows_of(shop)[L40S] == before
    assert before["worker"] == "here"
    on_gpu = project(fleet, WITH_L40S).graph([L40S])
    built(on_gpu, shop.store)
    assert (
        rows_of(shop)[L40S]["plan"] == "reuse"
    )  # judged on its engine, on its GPU: better than what can be judged here
    (plan,) = shop.graph([L40S]).rows
    assert plan.metrics is not None
    assert shop.graph().steps[plan.metrics.step].params["evaluated"] == "engine"


def test_a_worker_registers_before_it_takes_anything_from_a_queue(fleet: Fleet, tmp_path: Path) -> None:
    store = Store(fleet.folder / "store")
    command = [
        sys.executable,
        "-m",
        "pipelines.cli",
        "worker",
        "--sku",
        "l40s",
        "--broker",
        "redis://127.0.0.1:1/0",
    ]
    places = ["-m", str(fleet.folder / "matrix.yaml"), "--store", str(store.root)]
    environ = {"PYTHONPATH": str(ROOT), "DAGSTER_HOME": str(tmp_path)}
    with started([*command, *places], tmp_path / "log", {**os.environ, **environ}):
        until("it registers", lambda: len(registered(store)) == 1, 60, tmp_path / "log")
    (known,) = registered(store)
    assert known.spec == workers.spec_here(workers.this_machine(), ["l40s"])


@pytest.mark.slow
def test_a_manifest_packaged_without_the_hardware_is_the_one_packaged_with_it(
    tmp_path: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Real engines: OpenVINO for AVX2 by a worker; the machine that packages has neither AVX2 nor that OpenVINO."""
    avx2 = "  cpu-avx2: {cpu_arch: x86_64, cpu_features: [avx2], precisions: [fp32], compiler: openvino}\n"
    text = MATRIX.replace("gates:\n", f"{avx2}gates:\n").replace(
        "skus: [h100, l40s], precisions: [fp16]", "skus: [cpu-avx2], precisions: [fp32]"
    )
    text = text.replace(
        "{fp16: {min_realized_precision: 0.1}}", "{fp32: {min_speed_ratio: null, max_latency_ratio: null}}"
    )
    fleet = Fleet.at(tmp_path / "fleet", tiny_model, text)
    able = workers.this_machine()
    with_it = project(fleet, able, "with")
    workers.register(with_it.store, workers.spec_here(able, ["cpu-avx2"]))
    assert build(with_it, with_it.plan([AVX2]), with_images=False).exit_code == 0

    with monkeypatch.context() as elsewhere:
        elsewhere.syspath_prepend(new_release(tmp_path / "site", "openvino", "9999.1"))
        packager = project(fleet, replace(able, cpu_features=frozenset(), compilers=frozenset({"onnx"})), "without")
        made = build(packager, packager.plan(), with_images=False)
        assert made.exit_code == 0
        assert made.models[0].shipped == (AVX2, CPU)
        assert not any("avx2" in name and step.built for name, step in made.steps.items())

    assert build(with_it, with_it.plan(), with_images=False).models[0].shipped == (AVX2, CPU)
    manifests = [(fleet.folder / dist / "tiny" / "model_manifest.yaml").read_bytes() for dist in ("with", "without")]
    assert manifests[0] == manifests[1]
