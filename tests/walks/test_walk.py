"""The whole walk, as a person types it: one matrix through every hop, to a served request."""

from __future__ import annotations

import base64
import json
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from pipelines.cli.demo import HARDENED
from pipelines.image import build
from pipelines.image.docker import DockerClient
from pipelines.store.store import Store
from serving.contract import manifest
from serving.tasks.embed import load_golden
from tests.support.models import ROOT

pytestmark = pytest.mark.slow

MATRIX = """
schema_version: 1
models:
  tiny:
    task: embed
    source: ./tiny-bert
    release: "1.2.3"
    max_tokens: 64
    shapes: {min: [1, 1], opt: [8, 32], max: [64, 64]}
    calibration: {num_texts: 16, max_tokens: 64}
    retrieval: stdlib-docstrings
    runtimes: [cpu]
skus:
  l40s:
    {compute_capability: "8.9", pci_ids: ["26b9"], product: l40s, memory_gib: 48, gpus_per_node: 8,
     precisions: [fp16], compiler: tensorrt-rtx}
  l4:
    {compute_capability: "8.9", pci_ids: ["27b8"], product: l4, memory_gib: 24, gpus_per_node: 8,
     precisions: [fp16], compiler: tensorrt-rtx}
  t4:
    {compute_capability: "7.5", pci_ids: ["1eb8"], product: tesla-t4, memory_gib: 16, gpus_per_node: 4,
     precisions: [fp32], compiler: tensorrt-rtx}
  h100:
    {compute_capability: "9.0", pci_ids: ["2330"], product: h100-80gb-hbm3, memory_gib: 80, gpus_per_node: 8,
     precisions: [fp16], compiler: tensorrt}
  cpu-avx2: {cpu_arch: x86_64, cpu_features: [avx2], precisions: [fp32], compiler: openvino}
  cpu-x86-64: {cpu_arch: x86_64, cpu_features: [], precisions: [fp32], compiler: onnx}
build:
  - {models: [tiny], skus: [l40s, l4, h100], precisions: [fp16], tp: [1]}
  - {models: [tiny], skus: ["cpu-*"], precisions: [fp32], tp: [1]}
"""


@dataclass(frozen=True, kw_only=True)
class Walk:
    folder: Path
    first: subprocess.CompletedProcess[str]

    def enginery(
        self, *arguments: str, matrix: str = "matrix.yaml", dist: str = "dist"
    ) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "pipelines.cli", *arguments]
        if arguments[0] in {"build", "plan"}:
            command += ["--matrix", matrix, "--store", "store"]
        if arguments[0] == "build":
            command += ["--dist", dist, "--no-image"]
        return subprocess.run(
            command,
            cwd=self.folder,
            env={**os.environ, "PYTHONPATH": str(ROOT), "COLUMNS": "200"},
            capture_output=True,
            text=True,
            check=False,
        )

    @property
    def model(self) -> Path:
        return self.folder / "dist" / "tiny"


@pytest.fixture(scope="module")
def walk(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> Walk:
    folder = tmp_path_factory.mktemp("walk")
    # Without prompts: golden outputs are of bare texts, and a model with prompts wants input_type in each request.
    ignore = shutil.ignore_patterns("config_sentence_transformers.json")
    shutil.copytree(tiny_model, folder / "tiny-bert", ignore=ignore)
    (folder / "matrix.yaml").write_text(MATRIX)
    unbuilt = Walk(folder=folder, first=subprocess.CompletedProcess([], 0))
    return Walk(folder=folder, first=unbuilt.enginery("build"))


def test_a_build_ships_the_rows_that_passed_and_says_why_the_others_do_not(walk: Walk) -> None:
    assert walk.first.returncode == 0, walk.first.stdout + walk.first.stderr
    shipped = manifest.read(walk.model / "model_manifest.yaml")
    assert {profile.name for profile in shipped.profiles} == {
        "tiny__cpu-avx2__fp32__tp1",
        "tiny__cpu-x86-64__fp32__tp1",
        "tiny__l40s__fp16__tp1",
        "tiny__l4__fp16__tp1",
    }
    assert "needs a worker with h100" in walk.first.stdout
    assert (walk.model / "report.html").stat().st_size > 10_000


def test_skus_of_one_compute_capability_share_the_engines_bytes(walk: Walk) -> None:
    profiles = {p.name: p for p in manifest.read(walk.model / "model_manifest.yaml").profiles}
    ours, theirs = profiles["tiny__l40s__fp16__tp1"], profiles["tiny__l4__fp16__tp1"]
    assert ours.file("engine.plan").checksum == theirs.file("engine.plan").checksum
    assert ours.id != theirs.id
    assert "1 export, 1 quantize, 3 compile, 4 measure for 4 rows" in walk.first.stdout


def test_a_second_build_builds_nothing_and_says_so(walk: Walk) -> None:
    before = (walk.model / "model_manifest.yaml").read_bytes()
    again = walk.enginery("build")
    assert again.returncode == 0, again.stderr
    assert "Nothing to build" in again.stdout
    assert (walk.model / "model_manifest.yaml").read_bytes() == before


def test_touching_a_threshold_judges_again_and_runs_no_stage(walk: Walk) -> None:
    gates = "gates: {embed: {fp16: {min_cosine_mean: 0.9}}}\n"
    (walk.folder / "gates.yaml").write_text(MATRIX + gates)
    plan = json.loads(walk.enginery("plan", "--json", matrix="gates.yaml").stdout)
    stale = {step["step"]: step["why"] for step in plan["steps"] if step["state"] == "build"}
    assert set(stale) == {"judge/tiny__l40s__fp16__tp1", "judge/tiny__l4__fp16__tp1"}
    assert {why for whys in stale.values() for why in whys} == {"params.thresholds.min_cosine_mean: None -> 0.9"}


def test_two_cold_builds_give_the_same_manifest(walk: Walk, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    shutil.copytree(walk.folder / "tiny-bert", tmp_path / "elsewhere" / "tiny-bert")
    (tmp_path / "elsewhere" / "matrix.yaml").write_text(MATRIX)
    other = Walk(folder=tmp_path / "elsewhere", first=walk.first)
    assert other.enginery("build").returncode == 0
    assert (other.model / "model_manifest.yaml").read_bytes() == (walk.model / "model_manifest.yaml").read_bytes()


def test_a_selection_packages_only_its_rows_and_an_idle_glob_is_an_error(walk: Walk) -> None:
    done = walk.enginery("build", "--select", "*__cpu-x86-64__*", dist="dist-selected")
    assert done.returncode == 0, done.stderr
    shipped = manifest.read(walk.folder / "dist-selected" / "tiny" / "model_manifest.yaml")
    assert [p.name for p in shipped.profiles] == ["tiny__cpu-x86-64__fp32__tp1"]
    idle = walk.enginery("build", "--select", "*b200*", dist="dist-idle")
    assert idle.returncode == 2
    assert "no row has such a name" in idle.stderr
    assert not (walk.folder / "dist-idle").exists()


def test_a_broken_matrix_leaves_no_dist(walk: Walk) -> None:
    (walk.folder / "broken.yaml").write_text(MATRIX.replace("skus: [l40s, l4, h100]", "skus: [l40, l4]"))
    done = walk.enginery("build", matrix="broken.yaml", dist="dist-broken")
    assert done.returncode == 2
    assert "did you mean 'l40s'" in done.stderr
    assert "Traceback" not in done.stderr
    assert not (walk.folder / "dist-broken").exists()


def test_a_row_whose_stage_fails_does_not_take_the_others_with_it(walk: Walk) -> None:
    matrix = MATRIX.replace("skus: [l40s, l4, h100], precisions: [fp16]", "skus: [t4], precisions: [fp32]")
    (walk.folder / "refused.yaml").write_text(matrix)
    done = walk.enginery("build", matrix="refused.yaml", dist="dist-refused")
    assert done.returncode == 3, done.stdout + done.stderr
    assert "TensorRT for RTX has no fp32 products on this GPU; use fp16 for this SKU" in done.stdout
    shipped = manifest.read(walk.folder / "dist-refused" / "tiny" / "model_manifest.yaml")
    assert {p.name for p in shipped.profiles} == {"tiny__cpu-avx2__fp32__tp1", "tiny__cpu-x86-64__fp32__tp1"}


@pytest.fixture(scope="module")
def served(walk: Walk) -> Iterator[str]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    server = subprocess.Popen(
        [sys.executable, "-m", "pipelines.cli", "serve", str(walk.model), "--port", str(port)],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    url = f"http://127.0.0.1:{port}"
    try:
        for _ in range(600):
            try:
                if httpx.get(f"{url}/v1/health/ready").status_code == 200:
                    break
            except httpx.TransportError:
                pass
            time.sleep(0.1)
        yield url
    finally:
        server.terminate()
        assert server.wait(20) == 0


def embed(url: str, texts: list[str], **more: Any) -> np.ndarray[Any, Any]:
    body = {"model": "tiny", "input": texts, "encoding_format": "base64", "truncate": "END", **more}
    answer = httpx.post(f"{url}/v1/embeddings", json=body, timeout=60)
    assert answer.status_code == 200, answer.text
    return np.stack([np.frombuffer(base64.b64decode(d["embedding"]), "<f4") for d in answer.json()["data"]])


def test_served_vectors_match_the_fp32_reference_sentence_by_sentence(walk: Walk, served: str) -> None:
    store = Store(walk.folder / "store")
    record = store.latest("export", "tiny")
    assert record is not None
    golden = load_golden(store.path(record.outputs["golden.json"].digest).read_bytes())
    texts = [text for text in golden.texts if text.strip()][:128]
    vectors = np.concatenate([embed(served, list(texts[i : i + 16])) for i in range(0, len(texts), 16)])
    assert (vectors * golden.vectors[: len(texts)]).sum(axis=1).min() >= 0.999


def test_the_server_says_which_row_it_serves(served: str) -> None:
    metadata = httpx.get(f"{served}/v1/metadata").json()
    listed = httpx.get(f"{served}/v1/manifest").json()["manifest_file"]
    profiles = {p.id: p.name for p in manifest.load(listed.encode()).profiles}
    assert profiles[metadata["selectedModelProfileId"]] == "tiny__cpu-avx2__fp32__tp1"
    assert httpx.get(f"{served}/v1/models").json()["data"][0]["id"] == "tiny"


# In a container

# The engine runs a health check inside the container as `docker exec` does, which some hosts cannot.
UNPROBED = (*HARDENED, "--no-healthcheck")


@pytest.fixture(scope="module")
def built_image(walk: Walk, image_store: Path, docker_client: DockerClient) -> Iterator[str]:
    (made,) = build.build_images(walk.model, ("cpu",), store=Store(image_store))
    yield made.image_id
    docker_client.remove(made.reference)


def docker(*arguments: str, check: bool = True) -> subprocess.CompletedProcess[str]:
    """One command to the engine, which must end: an engine that hangs must not hang the tests."""
    return subprocess.run(["docker", *arguments], capture_output=True, text=True, check=check, timeout=120)


@contextmanager
def container(image_id: str, *options: str) -> Iterator[tuple[str, str]]:
    """Run as a stranger would: (its URL, its name)."""
    name = docker("run", "--detach", *UNPROBED, "--publish", "127.0.0.1::8000", *options, image_id).stdout.strip()
    try:
        published = docker("port", name, "8000")
        url, deadline = f"http://{published.stdout.split()[0]}", time.monotonic() + 60
        while True:
            with suppress(httpx.TransportError):
                if httpx.get(f"{url}/v1/health/ready").status_code == 200:
                    break
            if time.monotonic() > deadline:
                pytest.fail(f"not ready within a minute: {docker('logs', name, check=False).stderr}")
            time.sleep(0.1)
        yield url, name
    finally:
        docker("rm", "--force", name, check=False)


@pytest.mark.docker
@pytest.mark.timeout(900)
def test_the_image_serves_a_stranger_without_network_rights_or_a_home(
    walk: Walk, built_image: str, served: str
) -> None:
    texts = ["Open a file and read its lines.", "Two eggs and a cup of flour."]
    with container(built_image) as (url, _):
        assert np.allclose(embed(url, texts), embed(served, texts), atol=1e-5)
        assert httpx.get(f"{url}/v1/metadata").json()["selectedModelProfileName"] == "tiny__cpu-avx2__fp32__tp1"


@pytest.mark.docker
@pytest.mark.timeout(900)
def test_a_container_without_any_network_becomes_ready(built_image: str) -> None:
    # In one `docker run`, without `docker exec`: on some hosts an engine can start containers and not enter them.
    script = "start-server & for i in $(seq 300); do healthcheck 2>/dev/null && exit 0; sleep 0.1; done; exit 1"
    done = docker("run", "--rm", *UNPROBED, "--network", "none", built_image, "sh", "-c", script, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.docker
@pytest.mark.timeout(900)
def test_a_flipped_byte_in_an_image_is_refused_before_ready_and_the_next_profile_serves(
    walk: Walk, built_image: str, tmp_path: Path
) -> None:
    profiles = {p.name: p for p in manifest.read(walk.model / "model_manifest.yaml").profiles}
    blob = walk.model / "rootfs" / "opt" / "nim" / profiles["tiny__cpu-avx2__fp32__tp1"].file("engine.blob").uri
    damaged = tmp_path / "blob"
    content = bytearray(blob.read_bytes())
    content[len(content) // 2] ^= 1
    damaged.write_bytes(content)
    damaged.chmod(0o644)
    with container(built_image, "--volume", f"{damaged}:/opt/nim/blobs/blake3/{blob.name}:ro") as (url, name):
        assert httpx.get(f"{url}/v1/metadata").json()["selectedModelProfileName"] == "tiny__cpu-x86-64__fp32__tp1"
        logs = docker("logs", name)
    assert "blake3" in logs.stdout + logs.stderr
    assert "tiny__cpu-avx2__fp32__tp1" in logs.stdout + logs.stderr
