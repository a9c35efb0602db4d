"""Staleness and sensors over a fleet that was really built: what Dagster calls stale is what the plan would build."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import dagster as dg
import pytest
from dagster._core.definitions.data_version import CachingStaleStatusResolver, StaleStatus
from dagster._core.loader import LoadingContextForTest

from pipelines.dagster.lineage import AssetPartition, Stale
from pipelines.dagster.sensors import CAUSE, WHY, new_model_revision, new_toolchain, seen_versions
from pipelines.dagster.source_assets import observe
from pipelines.export import sources
from pipelines.matrix import load
from pipelines.plan.staleness import Cause
from tests.support.fleets import CPU, H100, L40S, NOT_BUILT, Fleet, new_release

pytestmark = pytest.mark.slow
PUBLICATION = AssetPartition("publication", "tiny")
TRT = {("engine", L40S), ("verdict", L40S), ("manifest", "tiny"), ("image", "tiny")}


def planned(fleet: Fleet) -> set[AssetPartition]:
    return set(fleet.factory.stale(fleet.factory.plan())) - NOT_BUILT


def stale(fleet: Fleet, instance: dg.DagsterInstance) -> dict[tuple[str, str], str]:
    """What Dagster calls stale, with the reason it shows."""
    graph = fleet.repository().asset_graph
    resolver = CachingStaleStatusResolver(instance, graph, LoadingContextForTest(instance))
    reasons = {}
    for asset, key in fleet.partitions():
        if (asset, key) not in NOT_BUILT:
            asset_key = dg.AssetKey(asset)
            if resolver.get_status(asset_key, key) != StaleStatus.FRESH:
                causes = resolver.get_stale_root_causes(asset_key, key)
                reasons[asset, key] = "; ".join(f"{c.asset_key.to_user_string()} {c.reason}" for c in causes)
    return reasons


def evaluated(
    sensor: dg.SensorDefinition, fleet: Fleet, instance: dg.DagsterInstance, cursor: str | None = None
) -> tuple[set[tuple[str, str]], dg.RunRequest | dg.SkipReason, str | None]:
    """What a sensor launches."""
    context = dg.build_sensor_context(
        instance=instance,
        cursor=cursor,
        repository_def=fleet.repository(),
        resources={"factory": fleet.factory},
        sensor_name=sensor.name,
    )
    answer = sensor.evaluate_tick(context)
    if not answer.run_requests:
        return set(), dg.SkipReason(answer.skip_message), answer.cursor
    (request,) = answer.run_requests
    assert request.asset_graph_subset is not None
    keys = {
        (item.asset_key.to_user_string(), str(item.partition_key))
        for item in request.asset_graph_subset.iterate_asset_partitions()
    }
    return keys, request, answer.cursor


def test_after_a_build_nothing_is_stale_in_the_plan_or_in_dagster(fleet: Fleet, instance: dg.DagsterInstance) -> None:
    assert observe(instance, fleet.factory.plan().lineages) == {}
    assert planned(fleet) == set()
    assert stale(fleet, instance) == {}
    for sensor in (new_model_revision, new_toolchain):
        keys, skip, _ = evaluated(sensor, fleet, instance)
        assert keys == set()
        assert "none of them for a new" in str(skip.skip_message)  # type: ignore[union-attr]


def test_a_new_tensorrt_makes_exactly_its_rows_stale_and_the_sensor_launches_exactly_those(
    fleet: Fleet, instance: dg.DagsterInstance, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(new_release(tmp_path / "site", "tensorrt-rtx-cu13-bindings", "99.1"))
    keys, request, cursor = evaluated(new_toolchain, fleet, instance)
    assert keys == TRT
    assert isinstance(request, dg.RunRequest)
    assert request.tags[CAUSE] == "toolchain"
    assert "toolchain.tensorrt-rtx-cu13-bindings: " in request.tags[WHY]
    assert request.tags[WHY].endswith("-> 99.1")

    assert stale(fleet, instance) == {("engine", L40S): "toolchain has a new data version"}
    record = instance.fetch_observations(dg.AssetKey("toolchain"), limit=1).records[0]
    assert record.asset_observation is not None
    assert "99.1" in str(record.asset_observation.metadata["version"].value)

    again, skip, _ = evaluated(new_toolchain, fleet, instance, cursor)
    assert again == set()
    assert "launched already" in str(skip.skip_message)  # type: ignore[union-attr]
    assert evaluated(new_model_revision, fleet, instance)[0] == set()

    fleet.materialize(instance, *sorted(TRT - NOT_BUILT))
    assert stale(fleet, instance) == {}
    assert planned(fleet) == set()


def test_a_new_model_revision_launches_everything_that_this_machine_builds(
    fleet: Fleet, instance: dg.DagsterInstance
) -> None:
    fleet.prompt("question: ")
    keys, request, _ = evaluated(new_model_revision, fleet, instance)
    assert keys == set(fleet.partitions()) - {PUBLICATION}
    assert not any(key == H100 for _, key in keys)
    assert isinstance(request, dg.RunRequest)
    assert "export/tiny: params.source_digest changed" in request.tags[WHY]
    assert stale(fleet, instance) == {("fp32_onnx", "tiny"): "model_revision has a new data version"}
    assert evaluated(new_toolchain, fleet, instance)[0] == set()


def test_a_threshold_makes_its_verdicts_stale_for_their_settings_and_no_sensor_launches_them(
    fleet: Fleet, instance: dg.DagsterInstance
) -> None:
    fleet.edit("{min_realized_precision: 0.1}", "{min_realized_precision: 0.2}")
    assert [evaluated(s, fleet, instance)[0] for s in (new_model_revision, new_toolchain)] == [set(), set()]
    assert stale(fleet, instance) == {("verdict", L40S): "settings has a new data version"}
    assert planned(fleet) == {("verdict", L40S), ("manifest", "tiny")}


def test_a_fact_of_a_sku_that_no_step_uses_makes_only_the_manifest_stale(
    fleet: Fleet, instance: dg.DagsterInstance
) -> None:
    fleet.edit("memory_gib: 48", "memory_gib: 46")
    observe(instance, fleet.factory.plan().lineages)
    assert stale(fleet, instance) == {("manifest", "tiny"): "settings has a new data version"}
    assert planned(fleet) == set()


def test_what_is_rebuilt_is_published_too_where_a_destination_is_set(
    fleet: Fleet, instance: dg.DagsterInstance, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    publishing = replace(fleet, to="s3://models/prod")
    due = publishing.factory.stale(publishing.factory.plan())
    assert due == {PUBLICATION: Stale(reasons={"publish/tiny: never published to s3://models/prod": Cause.UNPUBLISHED})}
    assert evaluated(new_toolchain, publishing, instance)[0] == set()

    monkeypatch.syspath_prepend(new_release(tmp_path / "site", "tensorrt-rtx-cu13-bindings", "99.1"))
    assert evaluated(new_toolchain, publishing, instance)[0] == TRT | {PUBLICATION}


def test_while_its_backfill_runs_a_sensor_does_not_launch_the_rest_of_it_again(
    fleet: Fleet, instance: dg.DagsterInstance
) -> None:
    fleet.prompt("question: ")
    launched, _, cursor = evaluated(new_model_revision, fleet, instance)
    assert launched == set(fleet.partitions()) - {PUBLICATION}
    for partition in (("fp32_onnx", "tiny"), ("engine", CPU)):
        fleet.materialize(instance, partition)
        assert partition not in planned(fleet)
        assert planned(fleet)
        again, skip, cursor = evaluated(new_model_revision, fleet, instance, cursor)
        assert again == set()
        assert "launched already" in str(skip.skip_message)  # type: ignore[union-attr]
    assert evaluated(new_toolchain, fleet, instance)[0] == set()


def test_a_build_that_failed_is_launched_again_only_for_another_revision(
    fleet: Fleet, instance: dg.DagsterInstance
) -> None:
    config = fleet.folder / "tiny-bert" / "config.json"
    sound = config.read_text()
    config.write_text("{}")
    launched, _, cursor = evaluated(new_model_revision, fleet, instance)
    assert launched == set(fleet.partitions()) - {PUBLICATION}
    export = (
        fleet.repository().get_implicit_global_asset_job_def().get_subset(asset_selection={dg.AssetKey("fp32_onnx")})
    )
    assert not export.execute_in_process(instance=instance, partition_key="tiny", raise_on_error=False).success
    again, skip, cursor = evaluated(new_model_revision, fleet, instance, cursor)
    assert (again, "launched already" in str(skip.skip_message)) == (set(), True)  # type: ignore[union-attr]

    config.write_text(sound)
    fleet.prompt("question: ")
    assert evaluated(new_model_revision, fleet, instance, cursor)[0] == set(fleet.partitions()) - {PUBLICATION}


def test_what_a_toolchains_backfill_makes_anew_is_no_new_model_revision(
    fleet: Fleet, instance: dg.DagsterInstance, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A new exporter makes another ONNX; the engine is then due for what it is compiled from."""
    _, _, of_models = evaluated(new_model_revision, fleet, instance)
    monkeypatch.syspath_prepend(new_release(tmp_path / "site", "optimum-onnx", "99.1"))
    launched, _, of_toolchain = evaluated(new_toolchain, fleet, instance)
    assert launched == set(fleet.partitions()) - {PUBLICATION}
    fleet.remake("export/tiny", "model.onnx")
    assert fleet.factory.stale(fleet.factory.plan())[AssetPartition("engine", CPU)].causes == {Cause.INPUTS}
    assert evaluated(new_model_revision, fleet, instance, of_models)[0] == set()
    assert evaluated(new_toolchain, fleet, instance, of_toolchain)[0] == set()


def test_another_part_of_the_toolchain_launches_what_comes_from_it_and_not_what_was_launched_before(
    fleet: Fleet, instance: dg.DagsterInstance, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(new_release(tmp_path / "first", "optimum-onnx", "99.1"))
    launched, _, cursor = evaluated(new_toolchain, fleet, instance)
    assert launched == set(fleet.partitions()) - {PUBLICATION}
    monkeypatch.syspath_prepend(new_release(tmp_path / "second", "tensorrt-rtx-cu13-bindings", "99.1"))
    launched, _, cursor = evaluated(new_toolchain, fleet, instance, cursor)
    assert launched == TRT
    assert evaluated(new_toolchain, fleet, instance, cursor)[0] == set()
    assert evaluated(new_toolchain, fleet, instance)[0] == set(fleet.partitions()) - {
        PUBLICATION
    }  # the cursor is reset


def test_a_tick_reads_the_matrix_and_hashes_each_model_once(
    fleet: Fleet, instance: dg.DagsterInstance, monkeypatch: pytest.MonkeyPatch
) -> None:
    publishing = replace(fleet, to="s3://models/prod")
    context = dg.build_sensor_context(
        instance=instance, repository_def=publishing.repository(), resources={"factory": publishing.factory}
    )
    calls: list[str] = []

    def counted(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        return lambda *arguments: (calls.append(name), function(*arguments))[1]

    monkeypatch.setattr(sources, "digest", counted("hash", sources.digest))
    monkeypatch.setattr(load, "load", counted("read", load.load))
    new_toolchain.evaluate_tick(context)
    assert sorted(calls) == ["hash", "read"]


def test_a_cursor_of_another_form_is_none() -> None:
    assert seen_versions('{"tiny": "sha256:1"}') == {"tiny": "sha256:1"}
    assert [seen_versions(cursor) for cursor in (None, "", "not json", "[1]")] == [{}] * 4


def test_a_row_new_in_the_matrix_is_no_sensors_business(fleet: Fleet, instance: dg.DagsterInstance) -> None:
    fleet.edit("skus: [h100, l40s], precisions: [fp16]", "skus: [h100, l40s], precisions: [fp16, fp32]")
    fleet.edit("precisions: [fp16], compiler: tensorrt-rtx", "precisions: [fp16, fp32], compiler: tensorrt-rtx")
    fleet.edit("precisions: [fp16], compiler: tensorrt}", "precisions: [fp16, fp32], compiler: tensorrt}")
    for sensor in (new_model_revision, new_toolchain):
        assert evaluated(sensor, fleet, instance)[0] == set()


def test_a_broken_matrix_is_told_by_the_sensor_and_launches_nothing(fleet: Fleet, instance: dg.DagsterInstance) -> None:
    repository_before = fleet.repository()
    fleet.edit("task: embed", "task: embedd")
    context = dg.build_sensor_context(
        instance=instance, repository_def=repository_before, resources={"factory": fleet.factory}
    )
    answer = new_toolchain.evaluate_tick(context)
    assert not answer.run_requests
    assert "embedd" in str(answer.skip_message)
