"""A slim image fills its cache from a real registry and a real S3 server, and serves from it without a network."""

from __future__ import annotations

import os
import random
import subprocess
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest

from pipelines.image import build, docker, oci, package
from pipelines.publish.dispatch import publish
from pipelines.release import oci_artifact
from pipelines.store.store import Store
from serving.contract import manifest
from tests.support.images import HARDENED
from tests.support.profiles import GENERIC, OPENVINO, add_profile, make_tiny, write_manifest
from tests.support.servers import KEYS, registry, s3, serve

pytestmark = [
    pytest.mark.docker,
    pytest.mark.slow,
    pytest.mark.timeout(900),
]
MODEL = f"test-slim-{os.getpid()}"
ANY_USER = tuple(option for option in HARDENED if not option.startswith("--network"))
VAST = random.Random(0).randbytes(4_000_000)  # an engine for a machine that is not here
ASK = """
import json, time, urllib.request
def ask(path, body=None):
    data, headers = json.dumps(body).encode() if body else None, {"Content-Type": "application/json"}
    request = urllib.request.Request("http://127.0.0.1:8000/v1/" + path, data, headers)
    with urllib.request.urlopen(request, timeout=30) as answer:
        return json.load(answer)
for _ in range(600):
    try:
        ask("health/ready")
        break
    except OSError:
        time.sleep(0.1)
answer = ask("embeddings", {"model": "tiny", "input": ["w1 w2 w3"]})
print("DIMENSION", len(answer["data"][0]["embedding"]), ask("metadata")["selectedModelProfileId"])
"""


@dataclass(frozen=True, kw_only=True)
class Slim:
    """An image without files, and the package that has them."""

    image_id: str
    folder: Path  # dist/<model>
    selected: str  # the id of the profile that this machine serves

    @property
    def root(self) -> Path:
        return self.folder / package.ROOT

    def blobs(self) -> dict[str, bytes]:
        return {f"blobs/blake3/{p.name}": p.read_bytes() for p in (self.root / "blobs/blake3").iterdir()}


@pytest.fixture(scope="module")
def slim(
    image_store: Path,
    docker_client: docker.DockerClient,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Slim]:
    folder, tiny = tmp_path_factory.mktemp("slim") / MODEL, make_tiny(0)
    root = folder / package.ROOT
    best = add_profile(root, "tiny__cpu-x86-64__fp32__tp1", OPENVINO, tiny.files("engine.blob", tiny.blob))
    generic = add_profile(root, "tiny__cpu__fp32__tp1", GENERIC, tiny.files("engine.onnx", tiny.onnx))
    elsewhere = add_profile(root, "tiny__x__fp32__tp1", {**GENERIC, "gpu": "x"}, tiny.files("engine.onnx", VAST))
    write_manifest(root, [best, generic, elsewhere])
    path = root / package.MANIFEST
    path.write_bytes(path.read_bytes().replace(b"model: 'tiny'", f"model: '{MODEL}'".encode()))
    (made,) = build.build_images(folder, ("cpu",), store=Store(image_store), kinds=("slim",))
    yield Slim(image_id=made.image_id, folder=folder, selected=best.id)
    docker_client.remove(made.reference)


@pytest.fixture
def volume(tmp_path: Path) -> Path:
    """A cache that any user may write, as a Kubernetes volume is by its fsGroup."""
    folder = tmp_path / "model-store"
    folder.mkdir()
    folder.chmod(0o777)
    return folder


def container(slim: Slim, volume: Path, *options: str, command: tuple[str, ...], mode: str = "rw") -> list[str]:
    mounted = ("--volume", f"{volume}:/model-store:{mode}", "--env", "NIM_CACHE_PATH=/model-store")
    return ["docker", "run", "--rm", *ANY_USER, *mounted, *options, slim.image_id, *command]


def run(command: list[str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=180)


def download(
    slim: Slim, volume: Path, repository: str, environ: Mapping[str, str], *which: str
) -> subprocess.CompletedProcess[str]:
    variables = {"NIM_REPOSITORY_OVERRIDE": repository, **environ}
    options = [word for name, value in variables.items() for word in ("--env", f"{name}={value}")]
    return run(container(slim, volume, "--network=host", *options, command=("download-to-cache", *which)))


def serve_without_network(slim: Slim, volume: Path, num: int = 1) -> list[str]:
    """The last lines of `num` containers that serve one read-only cache at once."""
    script = 'start-server >&2 & python3 -c "$0"'
    command = container(slim, volume, "--network=none", command=("sh", "-c", script, ASK), mode="ro")
    started = [subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) for _ in range(num)]
    lines = []
    for each in started:
        said, errors = each.communicate(timeout=180)
        assert each.returncode == 0, errors[-3000:]
        lines.append(said.strip().splitlines()[-1])
    return lines


def names(volume: Path) -> set[str]:
    return {path.name for path in (volume / "blobs/blake3").iterdir()}


def test_a_cache_from_a_registry_serves_two_containers_without_network_and_write_access(
    slim: Slim, volume: Path, tmp_path: Path
) -> None:
    with registry(tmp_path) as host:
        assert publish(slim.folder, f"oci://{host}/team/tiny:1.0.0").moved
        digest = oci.blob_of(oci_artifact.contents(slim.folder).manifest).digest
        done = download(slim, volume, f"oci://{host}/team/tiny@{digest}", {})
    assert done.returncode == 0, done.stderr
    assert slim.selected in done.stdout
    wanted = next(p for p in manifest.read(slim.root / package.MANIFEST).profiles if p.id == slim.selected)
    assert names(volume) == {file.checksum.removeprefix("blake3:") for file in wanted.files}
    assert serve_without_network(slim, volume, num=2) == [f"DIMENSION 16 {slim.selected}"] * 2


def test_a_cache_from_s3_serves_without_network(
    slim: Slim, volume: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with s3(tmp_path, {}) as url:
        for name, value in {**KEYS, "AWS_ENDPOINT_URL": url}.items():
            monkeypatch.setenv(name, value)
        assert publish(slim.folder, "s3://mirror/models").uploaded == len(slim.blobs())
        done = download(slim, volume, "s3://mirror/models", {**KEYS, "AWS_ENDPOINT_URL": url}, "--all")
    assert done.returncode == 0, done.stderr
    assert names(volume) == {Path(uri).name for uri in slim.blobs()}
    assert serve_without_network(slim, volume) == [f"DIMENSION 16 {slim.selected}"]


def test_a_download_in_a_container_that_is_killed_goes_on_in_the_next(slim: Slim, volume: Path) -> None:
    with serve({f"/{uri}": data for uri, data in slim.blobs().items()}) as web:
        web.slow_s = 0.1
        killed = 0
        for moment in (0.3, 1.2, 2.0):
            options = ("--detach", "--network=host", "--env", f"NIM_REPOSITORY_OVERRIDE={web.url}")
            command = container(slim, volume, *options, command=("download-to-cache", "--all"))
            name = run(command).stdout.strip()
            deadline, seen = time.monotonic() + 60, len(web.asked)
            while len(web.asked) == seen and time.monotonic() < deadline:
                time.sleep(0.05)
            time.sleep(moment)
            killed += run(["docker", "kill", name]).returncode == 0
            for path in (p for p in (volume / "blobs/blake3").iterdir() if not p.name.startswith(".")):
                assert path.read_bytes() == slim.blobs()[f"blobs/blake3/{path.name}"]
        assert killed
        web.slow_s = 0.0
        done = download(slim, volume, web.url, {}, "--all")
    assert done.returncode == 0, done.stderr
    assert names(volume) == {Path(uri).name for uri in slim.blobs()}


def test_corrupted_bytes_are_refused_in_a_container_and_nothing_of_them_stays(slim: Slim, volume: Path) -> None:
    blobs = {uri: bytes([data[0] ^ 1]) + data[1:] for uri, data in slim.blobs().items()}
    with serve({f"/{uri}": data for uri, data in blobs.items()}) as web:
        done = download(slim, volume, web.url, {})
    assert done.returncode == 23
    assert done.stderr.count("hashes to blake3:") == 4
    assert names(volume) == set()


def test_a_slim_image_with_neither_files_nor_a_repository_says_what_to_set(slim: Slim, volume: Path) -> None:
    done = run(container(slim, volume, "--network=none", command=("start-server",), mode="ro"))
    assert done.returncode != 0
    assert "set NIM_REPOSITORY_OVERRIDE, or mount a filled cache" in done.stdout + done.stderr


def test_a_cache_that_may_not_be_written_is_a_reason_with_ids_and_modes(slim: Slim, volume: Path) -> None:
    with serve({}) as web:
        options = ("--network=host", "--env", f"NIM_REPOSITORY_OVERRIDE={web.url}")
        done = run(container(slim, volume, *options, command=("download-to-cache",), mode="ro"))
        assert done.returncode == 23
        assert "uid=12345 gid=2000" in done.stderr
        assert "a read-only file system" in done.stderr
        assert web.asked == []


def test_certificates_of_a_site_are_taken_up_by_update_ca_certificates(slim: Slim, volume: Path) -> None:
    """As the NIM operator's init container does: as root, with the site's certificate beside the system's."""
    from tests.support.servers import certificate

    authority, _ = certificate(volume)
    script = (
        "cp /model-store/certificate.pem /usr/local/share/ca-certificates/site.crt && update-ca-certificates >&2"
        " && cat /etc/ssl/certs/ca-certificates.crt"
    )
    mounted = ("--volume", f"{volume}:/model-store:ro")
    done = run(
        [
            "docker",
            "run",
            "--rm",
            "--no-healthcheck",
            "--network=none",
            "--user=0:0",
            *mounted,
            slim.image_id,
            "sh",
            "-c",
            script,
        ]
    )
    assert done.returncode == 0, done.stderr
    assert authority.read_text().strip() in done.stdout
