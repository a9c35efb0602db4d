"""The Compose file of a small team, read by docker-compose itself, and held against what it mounts."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml

from tests.pipelines.services import ROOT

FOLDER = ROOT / "deploy" / "compose"
needs_compose = pytest.mark.skipif(shutil.which("docker-compose") is None, reason="docker-compose is not installed")


def config(folder: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    """What docker-compose makes of the file and example.env, with these variables set."""
    for path in FOLDER.iterdir():
        shutil.copy(path, folder / path.name)
    set_here = [f"{name}={value}" for name, value in variables.items()]
    (folder / ".env").write_text((FOLDER / "example.env").read_text() + "\n".join(set_here) + "\n")
    environ = {"PATH": os.environ["PATH"], "HOME": str(folder)}
    command = ["docker-compose", "-f", str(folder / "compose.yaml"), "config"]
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
