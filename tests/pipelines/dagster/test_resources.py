"""How a run takes a failure: what may pass is tried again."""

from __future__ import annotations

import dagster as dg
import pytest

from pipelines.dagster.resources import Factory
from tests.support.fleets import Fleet


def test_the_variables_of_an_installation_name_its_factory() -> None:
    factory = Factory.from_environment(
        {"ENGINERY_MATRIX": "m.yaml", "ENGINERY_REPOSITORY": "s3://models", "ENGINERY_PUBLISH_REPLACE": "1"}
    )
    assert (factory.matrix, factory.store, factory.repository) == ("m.yaml", ".store", "s3://models")
    assert (factory.publish_to, factory.publish_unguarded, factory.publish_replace) == (None, False, True)
    assert Factory.from_environment({"ENGINERY_REPOSITORY": ""}).repository is None  # compose.yaml


@pytest.mark.slow
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
