"""The publication asset against a real registry: what it says, what it writes down, and when it is due."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import dagster as dg
import pytest

from pipelines.dagster.lineage import AssetPartition
from pipelines.dagster.partitions import Partitions
from pipelines.errors import PublishError
from pipelines.inspect import resolve
from pipelines.plan.staleness import Cause
from pipelines.publish import last_published
from pipelines.publish.last_published import Destination
from pipelines.remote import login
from pipelines.store.store import Store
from tests.support import servers
from tests.support.fleets import Fleet
from tests.support.published import packaged


@pytest.fixture(scope="module")
def host(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with servers.registry(tmp_path_factory.mktemp("registry")) as found:
        yield found


@pytest.fixture
def fleet(tmp_path: Path, tiny_model: Path) -> Fleet:
    """A matrix of the model `tiny`, and a packaged one of that name in its dist."""
    fleet = Fleet.at(tmp_path, tiny_model)
    packaged(tmp_path)
    return fleet


def published(fleet: Fleet) -> dg.ExecuteInProcessResult:
    """Run the asset."""
    job = fleet.repository().get_implicit_global_asset_job_def()
    selected = job.get_subset(asset_selection={dg.AssetKey("publication")})
    with dg.DagsterInstance.ephemeral() as instance:
        return selected.execute_in_process(instance=instance, partition_key="tiny", raise_on_error=False)


def test_it_says_what_it_sent_and_where_to_look_and_sends_nothing_twice(fleet: Fleet, host: str) -> None:
    fleet = replace(fleet, to=f"oci://{host}/first/{{model}}")
    for sent, state in ((True, "now current"), (False, "was current already")):
        (event,) = published(fleet).get_asset_materialization_events()
        said: dict[str, Any] = {name: entry.value for name, entry in event.materialization.metadata.items()}
        found = resolve.read(str(said["reference"]))
        assert said["reference"] == f"oci://{host}/first/tiny:1.0.0"
        assert said["digest"] == found.release.digest
        assert said["link"] == f"http://{host}/v2/first/tiny/manifests/1.0.0"
        assert said["state"] == state
        assert (said["blobs sent"] > 0, said["bytes sent"] > 0, said["blobs already there"] > 0) == (
            sent,
            sent,
            not sent,
        )


def test_it_is_due_until_it_ran_and_again_when_what_is_built_or_the_destination_changes(
    fleet: Fleet, host: str, tmp_path: Path
) -> None:
    to = Destination(to=f"oci://{host}/second/{{model}}")
    store, dist = Store(fleet.folder / "store"), fleet.folder / "dist"

    def due(destination: Destination) -> dict[str, str]:
        return last_published.unpublished(dist, destination, store, ["tiny", "never-built"])

    assert due(to) == {"tiny": f"never published to oci://{host}/second/tiny"}
    last_published.publish(dist / "tiny", to, store)
    assert due(to) == {}
    assert due(Destination(to="s3://models/prod")) == {"tiny": "never published to s3://models/prod"}
    shutil.rmtree(dist)
    packaged(tmp_path / "again", {"8.9-fp16": b"another engine"}, release="1.0.1").parent.rename(dist)
    assert due(to)["tiny"].endswith(f"is not what was last published, oci://{host}/second/tiny:1.0.0")


def test_a_publication_that_was_refused_is_not_written_down(fleet: Fleet, host: str) -> None:
    to = Destination(to=f"oci://{host}/third/{{model}}:stable")
    store, folder = Store(fleet.folder / "store"), fleet.folder / "dist" / "tiny"
    last_published.publish(folder, to, store)
    shutil.rmtree(folder.parent)
    packaged(fleet.folder / "again", release="1.0.1").parent.rename(folder.parent)
    with pytest.raises(PublishError, match="is another release"):
        last_published.publish(folder, to, store)
    assert last_published.unpublished(folder.parent, to, store, ["tiny"])
    last_published.publish(folder, replace(to, replace=True), store)
    assert not last_published.unpublished(folder.parent, to, store, ["tiny"])


def test_without_a_destination_it_fails_with_the_remedy(fleet: Fleet) -> None:
    failure = published(fleet).failure_data_for_node("publication")
    assert failure is not None
    assert "ENGINERY_PUBLISH_TO=s3://BUCKET/PREFIX" in str(failure.user_failure_data)
    stale = fleet.factory.stale(fleet.factory.plan())
    assert not any(Cause.UNPUBLISHED in why.causes for why in stale.values())


def test_a_registrys_address_that_all_models_would_share_is_refused() -> None:
    assert Destination(to="s3://models/prod").of("tiny") == "s3://models/prod"
    with pytest.raises(PublishError, match=r"put \{model\} into the address"):
        Destination(to="oci://registry.example/models").of("tiny")


def test_the_link_of_a_release_in_a_bucket_is_its_pointer() -> None:
    environ = {"AWS_ENDPOINT_URL": "http://127.0.0.1:8333/"}
    found = last_published.link("s3://models/prod/tiny", environ)
    assert found == "http://127.0.0.1:8333/models/prod/models/tiny/latest.json"


def test_a_model_without_images_is_published_from_its_manifest(fleet: Fleet) -> None:
    publication = AssetPartition("publication", "tiny")
    with_images = fleet.factory.plan().lineages
    assert with_images[publication].upstream == (("image", "tiny"),)
    fleet.edit("runtimes: [rtx, cpu]", "runtimes: []")
    current = fleet.factory.plan()
    assert with_images.keys() - current.lineages.keys() == {("image", "tiny")}
    assert current.lineages[publication].upstream == (("manifest", "tiny"),)
    partitions = Partitions(current.plan.graph, current.lineages)
    assert partitions.of["image"].get_partition_keys() == []
    (to_manifest,) = (dep for dep in partitions.deps("publication") if dep.asset_key == dg.AssetKey("manifest"))
    assert isinstance(to_manifest.partition_mapping, dg.IdentityPartitionMapping)
    assert fleet.repository().asset_graph.get(dg.AssetKey("publication")).parent_keys >= {dg.AssetKey("manifest")}


def test_a_registry_that_does_not_answer_is_tried_again_and_a_refusal_is_not(
    fleet: Fleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(login, "RETRY", login.RETRY.new(total=0))  # of the client itself, before it gives up

    def tries(to: str) -> int:
        result = published(replace(fleet, to=to))
        assert not result.success
        return 1 + sum(event.is_step_restarted for event in result.all_events)

    assert tries(f"oci://localhost:{servers.free_port()}/gone/{{model}}") == 3
    assert tries("oci://registry.example/models") == 1
