"""The pods that the operator starts: a job that fills the cache, a service on it; each with the environment it gets."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import numpy as np
import pytest

from serving.contract import manifest
from tests.operator.match_profiles import ModelSpec, OperatorProfile, match_profiles, model_name, read_manifest
from tests.support.profiles import FIRST, GENERIC, SECOND, Tiny, add_profile, root, tiny, write_manifest

__all__ = ["root", "tiny"]  # fixtures

REPOSITORY = Path(__file__).parents[2]
MANIFEST = "etc/default/model_manifest.yaml"


@pytest.fixture
def image(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A slim image's /opt/nim: the manifest alone. `root` is the mirror that has its files."""
    slim = tmp_path_factory.mktemp("slim")
    (slim / MANIFEST).parent.mkdir(parents=True)
    shutil.copy(root / MANIFEST, slim / MANIFEST)
    return slim


@pytest.fixture
def path(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The image's commands, and the Python that has what an image's Python has."""
    folder = tmp_path_factory.mktemp("bin")
    shutil.copytree(REPOSITORY / "containers/bin", folder, symlinks=True, dirs_exist_ok=True)
    python = folder / "python3"
    python.write_text(f'#!/bin/sh\nPYTHONPATH={REPOSITORY} exec {sys.executable} "$@"\n')
    python.chmod(0o755)
    return f"{folder}:/usr/bin:/bin"


def environment(image: Path, path: str, store: Path, **more: str) -> dict[str, str]:
    """Of any pod: nothing of this machine's; NIM_CACHE_PATH stands for the volume at /model-store."""
    kept = {name: os.environ[name] for name in ("LD_LIBRARY_PATH",) if name in os.environ}
    given = {"NIM_CACHE_PATH": str(store), "ENGINERY_ROOT": str(image), "PATH": path, "HOME": "/nonexistent"}
    return {**kept, **given, **more}


def job(command: list[str], environ: dict[str, str]) -> subprocess.CompletedProcess[str]:
    """A cache job's pod: no GPU, the secret's variables, the verb in the place of the entrypoint."""
    return subprocess.run(
        command,
        env={**environ, "NGC_API_KEY": "unused", "NIM_CPU_ONLY": "1"},
        cwd="/",
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )


def matched(image: Path, spec: ModelSpec, *labels: str) -> tuple[OperatorProfile, ...]:
    return match_profiles(read_manifest((image / MANIFEST).read_text()), spec, labels)


def files_of(profiles: tuple[OperatorProfile, ...], image: Path) -> set[str]:
    """Digests of the profiles' files."""
    ids = {profile.id for profile in profiles}
    return {f.checksum for p in manifest.read(image / MANIFEST).profiles if p.id in ids for f in p.files}


def held(store: Path) -> set[str]:
    return {f"blake3:{path.name}" for path in store.rglob("*") if path.is_file() and len(path.name) == 64}


def test_a_cache_job_fetches_the_profiles_that_the_operator_matched_and_no_other(
    image: Path, root: Path, path: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    store = tmp_path_factory.mktemp("store")
    profiles = matched(image, ModelSpec(engine="onnx"), "NVIDIA-L40S")
    assert [profile.tags["backend"] for profile in profiles] == ["onnxruntime"]
    environ = environment(image, path, store, NIM_REPOSITORY_OVERRIDE=root.as_uri())
    done = job(["download-to-cache", "--profiles", *(profile.id for profile in profiles)], environ)
    assert done.returncode == 0, done.stderr
    assert held(store) == files_of(profiles, image)


def test_a_cache_job_for_all_profiles_fetches_all(
    image: Path, root: Path, path: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """spec.source.ngc.model.profiles: [all]; and the operator's default, every matched id in one command."""
    everything = matched(image, ModelSpec(), "NVIDIA-L40S")
    assert len(everything) == 2
    for arguments in (["--all"], ["--profiles", *(profile.id for profile in everything)]):
        store = tmp_path_factory.mktemp("store")
        environ = environment(image, path, store, NIM_REPOSITORY_OVERRIDE=root.as_uri())
        done = job(["download-to-cache", *arguments], environ)
        assert done.returncode == 0, done.stderr
        assert held(store) == files_of(everything, image)


def test_a_cache_job_that_cannot_fetch_fails_so_that_the_job_is_tried_again(
    image: Path, path: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    environ = environment(image, path, tmp_path_factory.mktemp("store"), NIM_REPOSITORY_OVERRIDE="file:///nowhere")
    done = job(["download-to-cache", "--all"], environ)
    assert done.returncode != 0
    assert "nowhere" in done.stderr


@contextmanager
def service(image: Path, path: str, store: Path, log: Path, **more: str) -> Iterator[str]:
    """A NIMService's pod with the environment that the operator sets for every one; its URL."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    standard = {
        "OUTLINES_CACHE_DIR": "/tmp/outlines",
        "NIM_SERVER_PORT": port,
        "NIM_HTTP_API_PORT": port,
        "NIM_JSONL_LOGGING": "1",
        "NIM_LOG_LEVEL": "INFO",
        "NGC_API_KEY": "unused",
        "NIM_GRPC_API_PORT": "8001",
        "NIM_TRITON_GRPC_PORT": "8001",
        "NIM_TRITON_METRICS_PORT": "8002",
        "NIM_SDK_USE_NATIVE_TLS": "1",
    }
    environ = environment(image, path, store, **standard, NIM_CPU_ONLY="1", NIM_DISABLE_MODEL_DOWNLOAD="1", **more)
    with log.open("wb") as output:
        running = subprocess.Popen(["entrypoint"], env=environ, cwd="/", stdout=output, stderr=output)
    try:
        yield f"http://127.0.0.1:{port}"
        running.send_signal(signal.SIGTERM)
        assert running.wait(30) == 0, log.read_text()
    finally:
        running.kill()
        running.wait(10)


def wait_until_ready(url: str, log: Path) -> None:
    """As the operator's probes ask: alive from the beginning, ready in the end."""
    end = time.monotonic() + 90
    alive = False
    while time.monotonic() < end:
        try:
            alive = alive or httpx.get(f"{url}/v1/health/live", timeout=5).status_code == 200
            if httpx.get(f"{url}/v1/health/ready", timeout=5).status_code == 200:
                assert alive
                return
        except httpx.TransportError:
            pass
        time.sleep(0.05)
    pytest.fail(f"never ready: {log.read_text()}")


def test_a_service_on_a_filled_cache_serves_without_its_mirror(
    image: Path, root: Path, path: str, tiny: Tiny, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("pod")
    store, log = folder / "store", folder / "log"
    ids = [profile.id for profile in matched(image, ModelSpec(), "NVIDIA-L40S")]
    environ = environment(image, path, store, NIM_REPOSITORY_OVERRIDE=root.as_uri())
    assert job(["download-to-cache", "--profiles", *ids], environ).returncode == 0
    shutil.move(root / "blobs", folder / "gone")
    with service(image, path, store, log) as url:
        wait_until_ready(url, log)
        assert model_name(httpx.get(f"{url}/v1/models").json()) == "tiny"
        assert "# TYPE" in httpx.get(f"{url}/v1/metrics").text
        body = {"model": "tiny", "input": list(tiny.golden.texts[:2])}
        data = httpx.post(f"{url}/v1/embeddings", json=body).json()["data"]
        assert np.allclose([item["embedding"] for item in data], tiny.golden.vectors[:2], atol=1e-5)
        assert httpx.get(f"{url}/v1/metadata").json()["selectedModelProfileId"] == id_of(image, FIRST)
    assert not [line for line in log.read_text().splitlines() if not line.startswith("{")]


def test_a_profile_that_the_operator_did_not_cache_does_not_keep_a_service_from_starting(
    image: Path, root: Path, path: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """The spec asked for onnx, the server would rather have openvino: it says why not, and takes what is there."""
    folder = tmp_path_factory.mktemp("pod")
    store, log = folder / "store", folder / "log"
    environ = environment(image, path, store, NIM_REPOSITORY_OVERRIDE=root.as_uri())
    assert job(["download-to-cache", "--profiles", id_of(image, SECOND)], environ).returncode == 0
    with service(image, path, store, log) as url:
        wait_until_ready(url, log)
        assert httpx.get(f"{url}/v1/metadata").json()["selectedModelProfileId"] == id_of(image, SECOND)
    assert f"Profile {id_of(image, FIRST)} ({FIRST}) failed, trying the next" in log.read_text()


def id_of(image: Path, name: str) -> str:
    return next(profile.id for profile in manifest.read(image / MANIFEST).profiles if profile.name == name)


def test_the_profile_that_a_service_names_is_the_one_that_serves(
    root: Path, path: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """spec.storage.nimCache.profile becomes NIM_MODEL_PROFILE."""
    folder = tmp_path_factory.mktemp("pod")
    wanted = id_of(root, SECOND)
    with service(root, path, folder / "store", folder / "log", NIM_MODEL_PROFILE=wanted) as url:
        wait_until_ready(url, folder / "log")
        assert httpx.get(f"{url}/v1/metadata").json()["selectedModelProfileId"] == wanted


def test_a_name_of_several_is_found_by_the_operator(
    tiny: Tiny, path: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("pod")
    write_manifest(folder, [add_profile(folder, SECOND, GENERIC, tiny.files("engine.onnx", tiny.onnx))])
    with service(folder, path, folder / "store", folder / "log", NIM_SERVED_MODEL_NAME="org/tiny,alias") as url:
        wait_until_ready(url, folder / "log")
        assert model_name(httpx.get(f"{url}/v1/models").json()) == "org/tiny"
