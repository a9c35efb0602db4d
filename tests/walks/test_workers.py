"""A small team's installation for real: Postgres, Redis, the daemon, and workers with a queue per SKU."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path

import dagster as dg
import pytest
from dagster._core.definitions.assets.graph.asset_graph_subset import AssetGraphSubset
from dagster._core.execution.backfill import BulkActionStatus, PartitionBackfill

from pipelines.dagster.lineage import AssetPartition, Stale
from pipelines.dagster.sensors import CAUSE, WHY
from pipelines.inspect import resolve
from pipelines.matrix.values import Worker
from pipelines.publish.dispatch import publish
from pipelines.publish.last_published import Destination
from tests.support.fleets import Fleet
from tests.support.servers import registry
from tests.support.services import ROOT, kill, postgres, redis, started, until

COMPOSE = ROOT / "deploy" / "compose" / "dagster.yaml"
HERE = Worker(cpu_arch="x86_64", cpu_features=frozenset(), compilers=frozenset({"tensorrt-rtx", "onnx"}))


# The real daemon, but for the time it sleeps between two looks at its backfills: 30 s each are long in a test.
DAEMON = """
import dagster._daemon.controller as controller
controller.DEFAULT_DAEMON_INTERVAL_SECONDS = 1
from dagster._daemon.cli import cli
cli()
"""


@dataclass(kw_only=True)
class Team:
    """The processes of an installation, and the instance they share."""

    fleet: Fleet
    environ: dict[str, str]
    stack: ExitStack
    instance: dg.DagsterInstance
    workers: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)

    def log(self, name: str) -> Path:
        return self.fleet.folder / f"{name}.log"

    def python(self, name: str, *arguments: str) -> subprocess.Popen[bytes]:
        command = [sys.executable, *arguments]
        return self.stack.enter_context(started(command, self.log(name), self.environ))

    def worker(self, name: str, *serves: str) -> None:
        paths = ["--matrix", str(self.fleet.folder / "matrix.yaml")]
        for option in ("store", "dist"):
            paths += [f"--{option}", str(self.fleet.folder / option)]
        self.workers[name] = self.python(name, "-m", "pipelines.cli", "worker", *serves, *paths)

    def daemon(self) -> None:
        self.python("daemon", "-c", DAEMON, "run", "-m", "pipelines.dagster.definitions")

    def runs(self, sku: str) -> list[dg.DagsterRun]:
        return list(self.instance.get_runs(dg.RunsFilter(tags={"enginery/sku": sku})))

    def backfill(self, name: str) -> None:
        """Ask for the rows that this machine builds, and the manifest. What they take from is built on the way."""
        graph = self.fleet.repository().asset_graph
        keys: dict[str, list[str]] = {}
        for asset, key in self.fleet.partitions():
            if asset in ("engine", "verdict", "manifest"):
                keys.setdefault(asset, []).append(key)
        subsets = {
            dg.AssetKey(asset): graph.get(dg.AssetKey(asset)).partitions_def.subset_with_partition_keys(names)  # type: ignore[union-attr]
            for asset, names in keys.items()
        }
        self.instance.add_backfill(
            PartitionBackfill.from_asset_graph_subset(
                backfill_id=name,
                dynamic_partitions_store=self.instance,
                backfill_timestamp=time.time(),
                asset_graph_subset=AssetGraphSubset(subsets, frozenset()),
                tags={},
                title=None,
                description=None,
                run_config=None,
            )
        )

    def status(self, name: str) -> BulkActionStatus:
        backfill = self.instance.get_backfill(name)
        assert backfill is not None
        return backfill.status


@pytest.fixture
def team(tmp_path: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Team]:
    """Postgres, Redis and the daemon, with the instance's settings that deploy/compose ships."""
    fleet = Fleet.at(tmp_path / "fleet", tiny_model)
    home = tmp_path / "home"
    home.mkdir()
    with ExitStack() as stack:
        port = stack.enter_context(postgres())
        settings = COMPOSE.read_text().replace("port: 5432", f"port: {port}")
        (home / "dagster.yaml").write_text(settings)
        environ = {
            "DAGSTER_HOME": str(home),
            "DAGSTER_PG_HOST": "127.0.0.1",
            "DAGSTER_PG_USER": "dagster",
            "DAGSTER_PG_PASSWORD": "",
            "DAGSTER_PG_DB": "dagster",
            "ENGINERY_BROKER": stack.enter_context(redis(tmp_path)),
            "ENGINERY_VISIBILITY_S": "10",
            "ENGINERY_MATRIX": str(fleet.folder / "matrix.yaml"),
            "ENGINERY_STORE": str(fleet.folder / "store"),
            "ENGINERY_DIST": str(fleet.folder / "dist"),
            "PYTHONPATH": str(ROOT),
        }
        for name, value in environ.items():
            monkeypatch.setenv(name, value)
        instance = stack.enter_context(dg.DagsterInstance.get())
        yield Team(fleet=fleet, environ=environ, stack=stack, instance=instance)


def building(worker: subprocess.Popen[bytes], stage: str) -> bool:
    """Whether a process of the worker's group runs this stage now."""
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                command = (entry / "cmdline").read_bytes().split(b"\0")
                if b"pipelines.stage" in command and os.getpgid(int(entry.name)) == worker.pid:
                    return f'"stage":"{stage}"' in Path(command[-2].decode()).read_text()
            except (OSError, IndexError):
                continue
    return False


def by_command_line(fleet: Fleet) -> bytes:
    """Build a fleet on this machine alone; returns its manifest."""
    paths = [f"--{name}={fleet.folder / name}" for name in ("store", "dist")]
    command = [
        sys.executable,
        "-m",
        "pipelines.cli",
        "build",
        "-m",
        str(fleet.folder / "matrix.yaml"),
        "--no-image",
    ]
    subprocess.run([*command, *paths], check=True, timeout=120, env={**os.environ, "PYTHONPATH": str(ROOT)})
    return manifest(fleet)


def manifest(fleet: Fleet) -> bytes:
    return (fleet.folder / "dist" / "tiny" / "model_manifest.yaml").read_bytes()


@pytest.mark.slow
@pytest.mark.timeout(280)
def test_a_row_whose_worker_is_killed_is_built_again_and_the_manifest_is_the_one_of_a_single_machine(
    team: Team, tmp_path: Path, tiny_model: Path
) -> None:
    of_one_machine = by_command_line(Fleet.at(tmp_path / "alone", tiny_model))

    team.worker("cpu", "--home", "--sku", "cpu-x86-64")
    team.worker("gpu", "--sku", "l40s")
    team.daemon()
    team.backfill("everything")
    until("the l40s row compiles", lambda: building(team.workers["gpu"], "compile"), 120, team.log("daemon"))
    kill(team.workers["gpu"], signal.SIGKILL)
    team.worker("another gpu", "--sku", "l40s")

    done = {BulkActionStatus.COMPLETED_SUCCESS, BulkActionStatus.COMPLETED_FAILED, BulkActionStatus.COMPLETED}
    until("the backfill is done", lambda: team.status("everything") in done, 150, team.log("daemon"))
    assert manifest(team.fleet) == of_one_machine
    assert sorted(run.status.value for run in team.runs("l40s")) == ["FAILURE", "SUCCESS"]
    assert {run.tags["dagster-celery/queue"] for run in team.runs("l40s")} == {"sku.l40s"}
    assert {run.tags["dagster-celery/queue"] for run in team.runs("cpu-x86-64")} == {"sku.cpu-x86-64"}
    assert all("dagster-k8s/config" in run.tags for run in team.runs("l40s"))


@pytest.mark.slow
@pytest.mark.timeout(280)
def test_a_new_revision_of_a_models_folder_is_rebuilt_and_published_without_a_hand(team: Team) -> None:
    team.fleet.edit("runtimes: [rtx, cpu]", "runtimes: []")
    to = Destination(to=f"oci://{team.stack.enter_context(registry(team.fleet.folder))}/team/{{model}}:nightly")
    team.environ |= {"ENGINERY_PUBLISH_TO": to.to, "ENGINERY_PUBLISH_REPLACE": "1"}
    before = by_command_line(team.fleet)
    publish(team.fleet.folder / "dist" / "tiny", to.of("tiny"))
    team.fleet.prompt("question: ")
    team.worker("all", "--home", "--sku", "cpu-x86-64", "--sku", "l40s")
    team.daemon()
    until("a new release", lambda: released(to.of("tiny")) != before, 200, team.log("daemon"))
    assert released(to.of("tiny")) == manifest(team.fleet)
    (started_by,) = team.instance.get_backfills()
    assert started_by.tags[CAUSE] == "model"
    assert "export/tiny: params.source_digest changed" in started_by.tags[WHY]
    (record,) = team.instance.fetch_observations(
        dg.AssetRecordsFilter(dg.AssetKey("model_revision"), asset_partitions=["tiny"]), limit=10
    ).records
    assert record.asset_observation is not None
    until("nothing is due", lambda: not still_due(replace(team.fleet, to=to.to)), 60)
    event = team.instance.get_latest_materialization_event(dg.AssetKey("publication"))
    assert event is not None
    assert event.asset_materialization is not None
    assert event.asset_materialization.metadata["reference"].value == to.of("tiny")


def released(reference: str) -> bytes:
    return resolve.read(reference).release.manifest_bytes


def still_due(fleet: Fleet) -> Mapping[AssetPartition, Stale]:
    return fleet.factory.stale(fleet.factory.plan())
