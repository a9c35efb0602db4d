"""Staleness and sensors over a fleet that was really built: what Dagster calls stale is what the plan would build."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import dagster as dg
import pytest
from dagster._core.definitions.data_version import CachingStaleStatusResolver, StaleStatus
from dagster._core.definitions.events import AssetKeyPartitionKey
from dagster._core.loader import LoadingContextForTest

from pipelines.dagster.definitions import build_defs
from pipelines.dagster.lineage import Cell, Due, due
from pipelines.dagster.schedules import verification
from pipelines.dagster.sensors import CAUSE, WHY, new_model_revision, new_toolchain
from pipelines.dagster.source_assets import observe
from pipelines.plan.staleness import Cause
from pipelines.publish import last_published
from pipelines.publish.last_published import Destination
from tests.support.fleets import CPU, H100, L40S, Fleet, new_release
from tests.support.servers import registry

pytestmark = pytest.mark.slow
PUBLICATION: Cell = ("publication", "tiny")
UNMADE = {("image", "tiny"), PUBLICATION}  # in these tests
TRT = {("engine", L40S), ("verdict", L40S), ("manifest", "tiny"), ("image", "tiny")}


@pytest.fixture(scope="module")
def pristine(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> Path:
    """A fleet that Dagster really built, but for image and publication; its instance lies beside it."""
    folder = tmp_path_factory.mktemp("pristine")
    fleet = Fleet.at(folder, tiny_model)
    (folder / "dagster").mkdir()
    with dg.DagsterInstance.local_temp(str(folder / "dagster")) as instance:
        observe(instance, fleet.factory.graph())
        fleet.materialize(instance, *(cell for cell in fleet.cells() if cell not in UNMADE))
    return folder


@pytest.fixture
def fleet(pristine: Path, tmp_path: Path) -> Fleet:
    shutil.copytree(pristine, tmp_path / "fleet")
    return Fleet(folder=tmp_path / "fleet")


@pytest.fixture
def instance(fleet: Fleet) -> Iterator[dg.DagsterInstance]:
    with dg.DagsterInstance.local_temp(str(fleet.folder / "dagster")) as opened:
        yield opened


def planned(fleet: Fleet) -> set[Cell]:
    project = fleet.factory.project()
    return set(due(project.graph(), project.store)) - UNMADE


def stale(fleet: Fleet, instance: dg.DagsterInstance) -> dict[Cell, str]:
    """What Dagster calls stale, with the reason it shows."""
    graph = fleet.repository().asset_graph
    resolver = CachingStaleStatusResolver(instance, graph, LoadingContextForTest(instance))
    found = {}
    for asset, key in fleet.cells():
        if (asset, key) not in UNMADE:
            cell = AssetKeyPartitionKey(dg.AssetKey(asset), key)
            if resolver.get_status(cell.asset_key, cell.partition_key) != StaleStatus.FRESH:
                causes = resolver.get_stale_root_causes(cell.asset_key, cell.partition_key)
                found[asset, key] = "; ".join(f"{c.asset_key.to_user_string()} {c.reason}" for c in causes)
    return found


def evaluated(
    sensor: dg.SensorDefinition, fleet: Fleet, instance: dg.DagsterInstance, cursor: str | None = None
) -> tuple[set[Cell], dg.RunRequest | dg.SkipReason, str | None]:
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
    assert observe(instance, fleet.factory.graph()) == {}
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

    fleet.materialize(instance, *sorted(TRT - UNMADE))
    assert stale(fleet, instance) == {}
    assert planned(fleet) == set()


def test_a_new_model_revision_launches_everything_that_this_machine_builds(
    fleet: Fleet, instance: dg.DagsterInstance
) -> None:
    fleet.prompt("question: ")
    keys, request, _ = evaluated(new_model_revision, fleet, instance)
    assert keys == set(fleet.cells()) - {PUBLICATION}
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
    observe(instance, fleet.factory.graph())
    assert stale(fleet, instance) == {("manifest", "tiny"): "settings has a new data version"}
    assert planned(fleet) == set()


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


def test_what_is_rebuilt_is_published_too_where_a_destination_is_set(
    fleet: Fleet, instance: dg.DagsterInstance, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    publishing = replace(fleet, to="s3://models/prod")
    project, unpublished = fleet.factory.project(), publishing.factory.unpublished(fleet.factory.graph())
    found = due(project.graph(), project.store, unpublished=unpublished)
    assert found == {PUBLICATION: Due(reasons={"publish/tiny: never published to s3://models/prod": Cause.UNPUBLISHED})}
    assert evaluated(new_toolchain, publishing, instance)[0] == set()

    monkeypatch.syspath_prepend(new_release(tmp_path / "site", "tensorrt-rtx-cu13-bindings", "99.1"))
    assert evaluated(new_toolchain, publishing, instance)[0] == TRT | {PUBLICATION}


def test_while_its_backfill_runs_a_sensor_does_not_launch_the_rest_of_it_again(
    fleet: Fleet, instance: dg.DagsterInstance
) -> None:
    fleet.prompt("question: ")
    cells, _, cursor = evaluated(new_model_revision, fleet, instance)
    assert cells == set(fleet.cells()) - {PUBLICATION}
    for cell in (("fp32_onnx", "tiny"), ("engine", CPU)):
        fleet.materialize(instance, cell)
        assert cell not in planned(fleet)
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
    cells, _, cursor = evaluated(new_model_revision, fleet, instance)
    assert cells == set(fleet.cells()) - {PUBLICATION}
    export = (
        fleet.repository().get_implicit_global_asset_job_def().get_subset(asset_selection={dg.AssetKey("fp32_onnx")})
    )
    assert not export.execute_in_process(instance=instance, partition_key="tiny", raise_on_error=False).success
    again, skip, cursor = evaluated(new_model_revision, fleet, instance, cursor)
    assert (again, "launched already" in str(skip.skip_message)) == (set(), True)  # type: ignore[union-attr]

    config.write_text(sound)
    fleet.prompt("question: ")
    assert evaluated(new_model_revision, fleet, instance, cursor)[0] == set(fleet.cells()) - {PUBLICATION}


def test_what_a_toolchains_backfill_makes_anew_is_no_new_model_revision(
    fleet: Fleet, instance: dg.DagsterInstance, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A new exporter makes another ONNX; the engine is then due for what it is compiled from."""
    _, _, of_models = evaluated(new_model_revision, fleet, instance)
    monkeypatch.syspath_prepend(new_release(tmp_path / "site", "optimum-onnx", "99.1"))
    cells, _, of_toolchain = evaluated(new_toolchain, fleet, instance)
    assert cells == set(fleet.cells()) - {PUBLICATION}
    fleet.remake("export/tiny", "model.onnx")
    project = fleet.factory.project()
    assert due(project.graph(), project.store)["engine", CPU].causes == {Cause.MODEL}
    assert evaluated(new_model_revision, fleet, instance, of_models)[0] == set()
    assert evaluated(new_toolchain, fleet, instance, of_toolchain)[0] == set()


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


def test_a_failure_that_may_pass_is_tried_again_and_one_that_says_why_is_not(
    fleet: Fleet, instance: dg.DagsterInstance, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = fleet.repository().get_implicit_global_asset_job_def()
    export = job.get_subset(asset_selection={dg.AssetKey("fp32_onnx")})

    def retried(raised: bool) -> tuple[int, str]:
        result = export.execute_in_process(instance=instance, partition_key="tiny", raise_on_error=False)
        assert not result.success
        events = [event for event in result.all_events if event.is_step_restarted]
        failure = result.failure_data_for_node("fp32_onnx")
        return len(events), str(failure and failure.error)

    (fleet.folder / "tiny-bert" / "config.json").write_text("{}")
    times, error = retried(False)
    assert (times, "export/tiny" in error) == (0, True)
    monkeypatch.setenv("PYTHONHOME", "/nonexistent")  # the stage's process dies before it can answer
    times, error = retried(True)
    assert times == 2


def test_the_nightly_verification_reads_what_is_built_and_what_was_published(
    fleet: Fleet, instance: dg.DagsterInstance, tmp_path: Path
) -> None:
    built = fleet.folder / "dist" / "tiny"

    def verified() -> tuple[list[Any], str]:
        """The releases that were looked at, and what is wrong."""
        resources = {"factory": fleet.factory}
        result = verification.execute_in_process(instance=instance, resources=resources, raise_on_error=False)
        failure: Any = result.failure_data_for_node("verify_released")
        if failure is None:
            (done,) = (event for event in result.all_events if event.is_successful_output)
            shown: Any = done.step_output_data.metadata["verified"]
            return [record.data["release"] for record in shown.records], ""
        said = failure.user_failure_data
        return [record.data["release"] for record in said.metadata["verified"].records], said.description

    with registry(tmp_path) as host:
        to = Destination(to=f"oci://{host}/nightly/{{model}}")
        assert verified() == ([str(built)], "")
        reference = last_published.publish(built, to, fleet.factory.project().store).reference
        assert verified() == ([str(built), reference], "")

        (engine, *_) = sorted((built / "rootfs").rglob("*"), key=lambda path: -path.stat().st_size)
        blob = next(path for path in (tmp_path / "registry").rglob("data") if path.read_bytes() == engine.read_bytes())
        for damaged in (engine, blob):
            flipped = bytearray(damaged.read_bytes())
            flipped[100] ^= 1
            damaged.chmod(0o644)
            damaged.write_bytes(bytes(flipped))
        looked_at, failure = verified()
        assert looked_at == [str(built), reference]
        assert f"{built}: blobs/blake3/{engine.name}: hashes to" in failure
        assert f"{reference}: blobs/blake3/{engine.name}: " in failure
    assert f"{reference}: " in verified()[1]  # the registry is gone
