"""The Compose file of a small team: read by docker-compose itself, held against what it mounts, and really started."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import boto3
import pytest
import yaml

from pipelines.image import docker
from pipelines.inspect import resolve
from tests.support.fleets import CPU, MATRIX, Fleet
from tests.support.services import ROOT, free_port, until
from tests.support.swift import needs_swift

FOLDER = ROOT / "deploy" / "compose"
needs_compose = pytest.mark.skipif(shutil.which("docker-compose") is None, reason="docker-compose is not installed")


def config(folder: Path, *over: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """What docker-compose makes of the file, those laid over it, and example.env, with these variables set."""
    shutil.copytree(FOLDER, folder, dirs_exist_ok=True)
    set_here = [f"{name}={value}" for name, value in variables.items()]
    (folder / ".env").write_text((FOLDER / "example.env").read_text() + "\n".join(set_here) + "\n")
    environ = {"PATH": os.environ["PATH"], "HOME": str(folder)}
    files = [word for name in ("compose.yaml", *over) for word in ("-f", str(folder / name))]
    command = ["docker-compose", *files, "config"]
    return subprocess.run(command, cwd=folder, env=environ, capture_output=True, text=True, timeout=60)


@needs_compose
def test_the_file_is_valid_and_every_process_shares_one_instance_and_one_store(tmp_path: Path) -> None:
    done = config(
        tmp_path,
        ENGINERY_IMAGE="factory:1",
        ENGINERY_FOLDER=str(tmp_path),
        POSTGRES_PASSWORD="p",
        S3_ACCESS_KEY="a",
        S3_SECRET_KEY="s",
    )
    assert done.returncode == 0, done.stderr
    services = yaml.safe_load(done.stdout)["services"]
    assert set(services) == {"webserver", "daemon", "worker", "postgres", "redis", "registry", "s3"}
    for name in ("webserver", "daemon", "worker"):
        assert any(str(mount).endswith("/etc/dagster/dagster.yaml:ro") for mount in services[name]["volumes"])
        assert any(str(mount).split(":")[1] == "/srv/enginery" for mount in services[name]["volumes"])
        assert services[name]["environment"]["ENGINERY_STORE"] == "/srv/enginery/store"
    assert services["worker"]["environment"]["SKUS"] == "cpu-x86-64 l40s"


@needs_compose
def test_on_a_host_with_gpus_the_worker_gets_them_and_nothing_else_does(tmp_path: Path) -> None:
    needed = {"ENGINERY_IMAGE": "factory:1", "ENGINERY_FOLDER": str(tmp_path), "POSTGRES_PASSWORD": "p"}
    done = config(tmp_path, "gpu.yaml", **needed, S3_ACCESS_KEY="a", S3_SECRET_KEY="s", ENGINERY_SKUS="l40s")
    assert done.returncode == 0, done.stderr
    services = yaml.safe_load(done.stdout)["services"]
    assert services["worker"]["environment"]["SKUS"] == "l40s"
    with_devices = {name: service["deploy"] for name, service in services.items() if "deploy" in service}
    (device,) = with_devices.pop("worker")["resources"]["reservations"]["devices"]
    assert (device["driver"], device["count"], device["capabilities"]) == ("nvidia", -1, ["gpu"])
    assert not with_devices


@needs_compose
def test_what_must_be_set_and_is_not_is_named(tmp_path: Path) -> None:
    done = config(tmp_path, ENGINERY_FOLDER=str(tmp_path), POSTGRES_PASSWORD="p")
    assert done.returncode != 0
    assert "ENGINERY_IMAGE" in done.stderr or "an image with this repository" in done.stderr


def test_every_variable_that_the_instance_reads_is_given_to_every_process() -> None:
    compose = yaml.safe_load((FOLDER / "compose.yaml").read_text())
    instance = yaml.safe_load((FOLDER / "dagster.yaml").read_text())

    def read(value: object) -> set[str]:
        if isinstance(value, dict):
            return {value["env"]} if set(value) == {"env"} else set().union(*(read(v) for v in value.values()))
        return set()

    wanted = read(instance)
    assert "ENGINERY_BROKER" in wanted
    for name in ("webserver", "daemon", "worker"):
        assert wanted <= set(compose["services"][name]["environment"])


LAUNCH = """
mutation ($of: JobOrPipelineSelector!, $tags: [ExecutionTag!]) {
  launchRun(executionParams: {selector: $of, runConfigData: {}, executionMetadata: {tags: $tags}}) {
    __typename
    ... on LaunchRunSuccess { run { runId } }
    ... on PythonError { message }
    ... on RunConfigValidationInvalid { errors { message } }
  }
}
"""
WHERE = "{ repositoriesOrError { ... on RepositoryConnection { nodes { name location { name } } } } }"
LOOK = "query ($id: ID!) { runOrError(runId: $id) { ... on Run { status tags { key value } } } }"
KEY, SECRET = "team:enginery", "of-the-bucket"


@dataclass(frozen=True, kw_only=True)
class Installation:
    """What docker-compose started from the shipped files, with this machine's Debian packages in it."""

    settings: Path  # the file .env
    ui_port: int
    registry_port: int
    s3_port: int

    def compose(self, *arguments: str, timeout_s: float = 120) -> str:
        files = [str(FOLDER / "compose.yaml"), str(FOLDER / "debian" / "compose.yaml")]
        where = ["--project-directory", str(FOLDER), "--env-file", str(self.settings), "-p", f"enginery-{self.ui_port}"]
        command = ["docker-compose", *where, *(word for file in files for word in ("-f", file)), *arguments]
        environ = {"PATH": os.environ["PATH"], "HOME": str(self.settings.parent)}
        done = subprocess.run(command, env=environ, capture_output=True, text=True, timeout=timeout_s)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def answers(self, url: str) -> bool:
        try:
            with urllib.request.urlopen(url, timeout=5) as answer:
                return bool(answer.status == 200)
        except OSError:
            return False

    def query(self, text: str, **variables: object) -> Any:
        """The webserver's answer to a question in GraphQL."""
        body = json.dumps({"query": text, "variables": variables}).encode()
        url, headers = f"http://127.0.0.1:{self.ui_port}/graphql", {"Content-Type": "application/json"}
        with urllib.request.urlopen(urllib.request.Request(url, body, headers), timeout=60) as answer:
            content = json.load(answer)
        assert "errors" not in content, content
        return content["data"]

    def ran(self, partition: str, *assets: str) -> dict[str, str]:
        """Materialize assets by the webserver, as the UI does; returns the run's tags when it has succeeded."""
        (repository,) = self.query(WHERE)["repositoriesOrError"]["nodes"]
        selector = {
            "repositoryName": repository["name"],
            "repositoryLocationName": repository["location"]["name"],
            "jobName": "__ASSET_JOB",
            "assetSelection": [{"path": [asset]} for asset in assets],
        }
        launched = self.query(LAUNCH, of=selector, tags=[{"key": "dagster/partition", "value": partition}])["launchRun"]
        assert launched["__typename"] == "LaunchRunSuccess", launched
        run: dict[str, Any] = {}

        def done() -> bool:
            run.update(self.query(LOOK, id=launched["run"]["runId"])["runOrError"])
            return run["status"] in ("SUCCESS", "FAILURE", "CANCELED")

        until(f"{', '.join(assets)} of {partition} is done", done, 150)
        assert run["status"] == "SUCCESS"
        return {tag["key"]: tag["value"] for tag in run["tags"]}


@pytest.fixture
def installation(tmp_path: Path, tiny_model: Path) -> Iterator[Installation]:
    Fleet.at(tmp_path / "site", tiny_model, MATRIX.replace("runtimes: [rtx, cpu]", "runtimes: []"))
    try:
        docker.connect()
    except docker.DockerUnreachable as error:
        pytest.skip(str(error))
    prepared = subprocess.run(
        [str(FOLDER / "debian" / "prepare.sh")],
        env={**os.environ, "ENGINERY_VENV": sys.prefix},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert prepared.returncode == 0, prepared.stderr
    ports = {name: free_port() for name in ("ui_port", "registry_port", "s3_port")}
    values = {
        "ENGINERY_FOLDER": tmp_path / "site",
        "ENGINERY_MATRIX_FILE": "matrix.yaml",
        "ENGINERY_SKUS": "cpu-x86-64",
        "ENGINERY_PUBLISH_TO": "s3://models/prod",
        "ENGINERY_PUBLISH_UNGUARDED": "1",
        "POSTGRES_PASSWORD": "of-the-database",
        "S3_ACCESS_KEY": KEY,
        "S3_SECRET_KEY": SECRET,
        **{name.upper(): port for name, port in ports.items()},
    }
    settings = tmp_path / ".env"
    lines = [
        (FOLDER / "example.env").read_text(),
        *(f"{name}={value}" for name, value in values.items()),
        prepared.stdout,
    ]
    settings.write_text("\n".join(lines))
    installation = Installation(settings=settings, **ports)
    try:
        installation.compose("up", "-d")
        yield installation
        print(
            installation.compose("logs", "--no-color", "--tail=60")[-12_000:]
        )  # pytest shows it where the test failed
    finally:
        installation.compose("down", "-v", "-t", "5")


@needs_compose
@needs_swift
@pytest.mark.docker
@pytest.mark.slow
@pytest.mark.timeout(280)
def test_the_installation_starts_and_a_model_goes_through_its_queue_into_its_bucket(
    installation: Installation, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    s3 = f"http://127.0.0.1:{installation.s3_port}"
    for name, value in {"ACCESS_KEY_ID": KEY, "SECRET_ACCESS_KEY": SECRET, "DEFAULT_REGION": "us-east-1"}.items():
        monkeypatch.setenv(f"AWS_{name}", value)
    monkeypatch.setenv("AWS_ENDPOINT_URL", s3)
    until(
        "the registry answers", lambda: installation.answers(f"http://127.0.0.1:{installation.registry_port}/v2/"), 60
    )
    until("S3 answers", lambda: installation.answers(f"{s3}/info"), 60)
    boto3.session.Session().client("s3").create_bucket(Bucket="models")  # the default one keeps another test's keys
    until("the UI answers", lambda: installation.answers(f"http://127.0.0.1:{installation.ui_port}/server_info"), 120)

    row = installation.ran(CPU, "verdict")
    assert (row["enginery/sku"], row["dagster-celery/queue"]) == ("cpu-x86-64", "sku.cpu-x86-64")
    assert installation.ran("tiny", "manifest", "publication")["dagster-celery/queue"] == "home"
    published = resolve.read("s3://models/prod/tiny").release
    assert published.manifest_bytes == (tmp_path / "site" / "dist" / "tiny" / "model_manifest.yaml").read_bytes()
    assert [profile.name for profile in published.manifest.profiles] == [CPU]
