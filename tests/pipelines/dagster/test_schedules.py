"""The nightly verification over a fleet that was really built and published."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import dagster as dg
import pytest

from pipelines.dagster.schedules import verification
from pipelines.publish import last_published
from pipelines.publish.last_published import Destination
from tests.support.fleets import Fleet
from tests.support.servers import registry

pytestmark = pytest.mark.slow


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
        failed = failure.user_failure_data
        return [record.data["release"] for record in failed.metadata["verified"].records], failed.description

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
