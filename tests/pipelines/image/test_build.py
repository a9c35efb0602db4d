"""Images: the same digest in two folders, at two times, and by `docker build`; and what they do when they run."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from pipelines.errors import ImageError
from pipelines.image import build as image
from pipelines.image import docker, dockerfile, oci, package, runtime, wheels
from pipelines.image.images import ImageResult, describe
from pipelines.matrix.load import load
from pipelines.store.files import file_digest
from pipelines.store.store import Store
from serving.contract import manifest
from tests.support.images import (
    CPU_ROWS,
    GPU_ROWS,
    HARDENED,
    MODEL,
    base_tar,
    dist,
    files_of,
    imported,
    write_containers,
)
from tests.support.published import MATRIX


@pytest.fixture
def small(tmp_path: Path) -> Path:
    return write_containers(tmp_path / "containers", "cpu", "rtx")


def build(folder: Path, store: Path, containers: Path, base: Path, *runtimes: str) -> tuple[ImageResult, ...]:
    return image.build_images(
        folder, runtimes or ("rtx", "cpu"), store=Store(store), base=base, containers=containers, docker=False
    )


def test_the_same_package_gives_the_same_digests_in_two_folders(tmp_path: Path, small: Path) -> None:
    base = base_tar(tmp_path / "base.tar")
    one = build(dist(tmp_path / "1"), tmp_path / "store1", small, base)
    (renamed := tmp_path / "elsewhere.tar").write_bytes(base.read_bytes())
    os.utime(renamed, (1, 1))
    two = build(dist(tmp_path / "2"), tmp_path / "store2", small, renamed)
    assert [r.manifest_digest for r in one] == [r.manifest_digest for r in two]
    assert [r.image_id for r in one] == [r.image_id for r in two]


def test_one_changed_engine_changes_one_layer_and_the_manifest(tmp_path: Path, small: Path) -> None:
    base, store = base_tar(tmp_path / "base.tar"), tmp_path / "store"
    (one,) = build(dist(tmp_path / "1", CPU_ROWS), store, small, base, "cpu")
    (two,) = build(dist(tmp_path / "2", CPU_ROWS, changed="cpu-x86-64"), store, small, base, "cpu")
    kept = {layer.digest for layer in one.layers} & {layer.digest for layer in two.layers}
    assert [layer.what for layer in two.layers if layer.digest not in kept] == [
        "engine: cpu-x86-64__fp32__tp1",
        "manifest",
    ]
    assert one.manifest_digest != two.manifest_digest


def test_the_cpu_image_has_only_what_a_cpu_can_execute_and_the_rtx_image_has_all(tmp_path: Path, small: Path) -> None:
    results = build(dist(tmp_path / "1"), tmp_path / "store", small, base_tar(tmp_path / "base.tar"))
    names = {}
    for result in results:
        files = files_of(result, tmp_path / "store")
        read = manifest.load(files["opt/nim/etc/default/model_manifest.yaml"])
        names[result.runtime] = {profile.tags["backend"] for profile in read.profiles}
        wanted = {f"opt/nim/{file.uri}" for profile in read.profiles for file in profile.files}
        assert {name for name in files if name.startswith("opt/nim/blobs")} == wanted
    assert names == {
        "cpu": {"onnxruntime", "openvino"},
        "rtx": {"onnxruntime", "openvino", "tensorrt-rtx"},
    }


def test_images_are_named_by_model_release_and_runtime(tmp_path: Path, small: Path) -> None:
    results = build(dist(tmp_path / "1"), tmp_path / "store", small, base_tar(tmp_path / "base.tar"))
    release = next(iter(load(MATRIX).models.values())).release
    assert [r.reference for r in results] == [f"enginery/{MODEL}:{release}", f"enginery/{MODEL}:{release}-cpu"]


def test_an_engine_that_several_skus_share_is_one_layer_and_the_manifest_is_last(tmp_path: Path, small: Path) -> None:
    (result,) = build(dist(tmp_path / "1"), tmp_path / "store", small, base_tar(tmp_path / "base.tar"), "rtx")
    whats = [layer.what for layer in result.layers]
    assert sum(what.startswith("engine") for what in whats) == 4
    assert any("l4__fp16__tp1" in what and "l40s__fp16__tp1" in what for what in whats)
    assert whats[-1] == "manifest"
    assert result.size_bytes == sum(layer.size_bytes for layer in result.layers)
    assert all(what in describe(result) for what in whats)


def test_more_engines_than_docker_has_layers_are_put_together(
    tmp_path: Path, small: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(image, "MAX_ENGINE_LAYERS", 2)
    (result,) = build(dist(tmp_path / "1"), tmp_path / "store", small, base_tar(tmp_path / "base.tar"), "rtx")
    assert sum(layer.what.startswith("engine") for layer in result.layers) == 2
    assert len([name for name in files_of(result, tmp_path / "store") if "blobs/blake3" in name]) == 4 + len(
        package.SHARED
    )


def test_the_image_says_what_it_is_and_keeps_its_runtimes_settings(tmp_path: Path, small: Path) -> None:
    (result,) = build(dist(tmp_path / "1"), tmp_path / "store", small, base_tar(tmp_path / "base.tar"), "cpu")
    config = config_of(result, tmp_path / "1" / "dist")
    assert (config["User"], config["Env"], config["Entrypoint"]) == ("1000:1000", ["A=1"], ["/bin/x"])
    assert config["Labels"]["org.opencontainers.image.version"]
    assert config["Labels"]["org.opencontainers.image.base.digest"].startswith("sha256:")
    assert "com.nvidia.nim.model_download_protocol" not in config["Labels"]


def config_of(result: ImageResult, folder: Path) -> dict[str, Any]:
    return dict(json.loads((folder / image.LAYOUT / oci.blob_path(result.image_id)).read_text())["config"])


def test_a_slim_image_has_the_full_ones_manifest_to_the_byte_and_no_file_of_the_model(
    tmp_path: Path, small: Path
) -> None:
    folder, base, store = dist(tmp_path / "1"), base_tar(tmp_path / "base.tar"), Store(tmp_path / "store")
    results = image.build_images(
        folder, ("rtx", "cpu"), store=store, base=base, containers=small, docker=False, kinds=("full", "slim")
    )
    assert [(r.runtime, r.kind, r.reference.endswith("-slim")) for r in results] == [
        ("rtx", "full", False),
        ("rtx", "slim", True),
        ("cpu", "full", False),
        ("cpu", "slim", True),
    ]
    for full, slim in (results[:2], results[2:]):
        assert slim.reference == f"{full.reference}-slim"
        mine, whole = files_of(slim, store.root), files_of(full, store.root)
        assert not [name for name in mine if name.startswith("opt/nim/blobs")]
        assert {name: whole[name] for name in mine} == mine
        assert slim.layers == (*full.layers[:2], full.layers[-1])
        assert config_of(full, folder)["Labels"][image.KIND_LABEL] == "full"
        assert config_of(slim, folder)["Labels"][image.KIND_LABEL] == "slim"
    listed = json.loads((folder / image.LAYOUT / "index.json").read_text())["manifests"]
    assert len(listed) == 4


def test_a_full_image_is_the_same_whether_or_not_a_slim_one_is_made(tmp_path: Path, small: Path) -> None:
    base = base_tar(tmp_path / "base.tar")
    (alone,) = build(dist(tmp_path / "1"), tmp_path / "store1", small, base, "cpu")
    full, slim = image.build_images(
        dist(tmp_path / "2"),
        ("cpu",),
        store=Store(tmp_path / "store2"),
        base=base,
        containers=small,
        docker=False,
        kinds=("full", "slim"),
        repository="s3://bucket/models",
    )
    assert full.manifest_digest == alone.manifest_digest
    assert config_of(full, tmp_path / "2" / "dist")["Env"] == ["A=1"]
    assert config_of(slim, tmp_path / "2" / "dist")["Env"] == ["A=1", "ENGINERY_REPOSITORY=s3://bucket/models"]


def test_a_flipped_byte_in_the_package_is_refused_before_it_is_in_an_image(tmp_path: Path, small: Path) -> None:
    folder = dist(tmp_path / "1")
    blob = sorted((folder / package.ROOT / "blobs/blake3").iterdir())[0]
    blob.write_bytes(blob.read_bytes()[:-1] + b"?")
    with pytest.raises(ImageError, match=f"{blob.name} is missing or damaged"):
        build(folder, tmp_path / "store", small, base_tar(tmp_path / "base.tar"))


def test_a_second_build_reads_no_engine_again(tmp_path: Path, small: Path) -> None:
    folder, base = dist(tmp_path / "1"), base_tar(tmp_path / "base.tar")
    one = build(folder, tmp_path / "store", small, base)
    for path in (folder / package.ROOT / "blobs/blake3").iterdir():
        path.write_bytes(b"")  # were it read, it would be refused
    two = build(folder, tmp_path / "store", small, base)
    assert [result.manifest_digest for result in two] == [result.manifest_digest for result in one]


def test_a_base_with_another_python_is_refused_with_both_versions(tmp_path: Path, small: Path) -> None:
    base = base_tar(tmp_path / "base.tar", python="python3.9")
    with pytest.raises(ImageError, match=rf"has Python 3\.9 and this is Python 3\.{sys.version_info.minor}"):
        build(dist(tmp_path / "1"), tmp_path / "store", small, base)


def test_a_base_without_python_is_refused(tmp_path: Path, small: Path) -> None:
    base = base_tar(tmp_path / "base.tar", python="perl")
    with pytest.raises(ImageError, match=r"base\.tar has no Python"):
        build(dist(tmp_path / "1"), tmp_path / "store", small, base)


def test_a_base_that_is_no_tar_is_refused(tmp_path: Path, small: Path) -> None:
    (tmp_path / "base.tar").write_text("not a tar")
    with pytest.raises(ImageError, match="is no tar of a root file system"):
        build(dist(tmp_path / "1"), tmp_path / "store", small, tmp_path / "base.tar")


def test_without_a_base_and_an_engine_the_complete_context_is_written_and_both_reasons_are_said(
    tmp_path: Path, small: Path
) -> None:
    (small / "base.sh").write_text("#!/bin/sh\necho 'base.sh: needs root' >&2\nexit 1\n")
    (small / "base.sh").chmod(0o755)
    folder = dist(tmp_path / "1")
    with pytest.raises(ImageError) as caught:
        image.build_images(folder, ("rtx", "cpu"), store=Store(tmp_path / "store"), containers=small, docker=False)
    for words in ("no Docker engine can be reached", "base.sh: needs root", "--base", "docker build --build-arg BASE="):
        assert words in str(caught.value)
    context = folder / image.CONTEXT
    assert (context / "app/serving/__main__.py").is_file()
    offered = manifest.read(context / "model/cpu/opt/nim" / package.MANIFEST)
    assert {p.backend for p in offered.profiles} == {"onnxruntime", "openvino"}
    for profile in offered.profiles:
        assert all((context / "model/cpu/opt/nim" / file.uri).is_file() for file in profile.files)
    assert (context / "rtx.Dockerfile").read_text().endswith("COPY model/rtx/ /\n")


def test_an_engine_that_cannot_be_reached_is_a_reason_and_the_layout_is_written(
    tmp_path: Path, small: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DOCKER_HOST", f"unix://{tmp_path}/nobody.sock")
    results = image.build_images(
        dist(tmp_path / "1"), ("cpu",), store=Store(tmp_path / "s"), base=base_tar(tmp_path / "b.tar"), containers=small
    )
    assert "no Docker engine can be reached" in (results[0].not_loaded_because or "")
    assert (tmp_path / "1" / "dist" / image.LAYOUT / "index.json").is_file()


def test_a_model_that_only_gpus_can_run_has_no_cpu_image_and_says_so(tmp_path: Path, small: Path) -> None:
    folder, base = dist(tmp_path / "1", GPU_ROWS), base_tar(tmp_path / "base.tar")
    (result,) = build(folder, tmp_path / "store", small, base)
    assert result.runtime == "rtx"
    assert image.without_profile(manifest.read(folder / package.ROOT / package.MANIFEST), ("rtx", "cpu")) == ["cpu"]
    with pytest.raises(ImageError, match="no profile that the runtimes cpu can execute"):
        build(folder, tmp_path / "store", small, base, "cpu")


def test_an_unknown_runtime_is_refused_with_the_known_ones(tmp_path: Path, small: Path) -> None:
    with pytest.raises(ImageError, match="the runtimes are cpu, rtx, cuda"):
        build(dist(tmp_path / "1"), tmp_path / "store", small, base_tar(tmp_path / "base.tar"), "gpu")


def test_the_server_is_in_the_image_compiled_without_a_path_of_this_machine(tmp_path: Path, small: Path) -> None:
    (result,) = build(dist(tmp_path / "1"), tmp_path / "store", small, base_tar(tmp_path / "base.tar"), "cpu")
    files = files_of(result, tmp_path / "store")
    source = (runtime.SERVING / "contract" / "profile.py").read_bytes()
    assert files["opt/enginery/serving/contract/profile.py"] == source
    compiled = files[f"opt/enginery/serving/contract/__pycache__/profile.cpython-3{sys.version_info.minor}.pyc"]
    assert compiled[4:8] == b"\x01\x00\x00\x00"  # by hash, and never compared with the source
    assert b"/opt/enginery/serving/contract/profile.py" in compiled
    for name, content in files.items():
        assert str(tmp_path).encode() not in content, name


def test_a_dockerfile_with_an_instruction_that_needs_an_engine_is_refused_by_line(tmp_path: Path, small: Path) -> None:
    (small / "cpu/Dockerfile").write_text("FROM x\nRUN apt-get install gcc\n")
    with pytest.raises(ImageError, match=r"line 2: 'RUN apt-get install gcc'"):
        build(dist(tmp_path / "1"), tmp_path / "store", small, base_tar(tmp_path / "base.tar"), "cpu")


def test_folders_that_stripping_leaves_empty_go_as_well(tmp_path: Path) -> None:
    for name in ("data/ec2/2016/service.json", "data/s3/2006/service.json", "data/endpoints.json"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    wheels.strip(tmp_path, ["data/[a-r]*/*"])
    left = {path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*")}
    assert left == {"data", "data/s3", "data/s3/2006", "data/s3/2006/service.json", "data/endpoints.json"}


def test_a_strip_pattern_that_matches_nothing_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "kept.py").touch()
    with pytest.raises(ImageError, match=r"names what is not in these wheels: gone/\*"):
        wheels.strip(tmp_path, ["gone/*"])


# With a Docker engine


def run(result: ImageResult, *command: str, options: tuple[str, ...] = ()) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["docker", "run", "--rm", *HARDENED, *options, result.image_id, *command],
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )


@pytest.mark.docker
@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_runtimes_are_small_and_share_their_lower_layers(images: dict[str, ImageResult]) -> None:
    cpu, rtx = (images[name].layers for name in ("cpu", "rtx"))
    assert sum(layer.size_bytes for layer in cpu if layer.what in ("base", "lib/cpu", "app")) < 600e6
    assert [layer.digest for layer in cpu[:2]] == [layer.digest for layer in rtx[:2]]


@pytest.mark.docker
@pytest.mark.slow
@pytest.mark.timeout(900)
def test_an_image_runs_as_any_user_with_nothing_writable_and_lists_its_profiles(
    images: dict[str, ImageResult],
) -> None:
    for verb in ("list-model-profiles", "nim_list_model_profiles"):
        done = run(images["rtx"], verb)
        assert done.returncode == 0, done.stderr
        assert "MODEL PROFILES" in done.stdout
        assert "__l40s__fp8__tp1" in done.stdout
    assert "__l40s__fp8__tp1" not in run(images["cpu"], "list-model-profiles").stdout


@pytest.mark.docker
@pytest.mark.slow
@pytest.mark.timeout(900)
def test_an_image_has_what_the_operator_runs_and_no_tool_to_build_with(images: dict[str, ImageResult]) -> None:
    for command in (["sh", "-c", "cat /opt/nim/etc/default/model_manifest.yaml; sleep 0"], ["update-ca-certificates"]):
        assert run(images["cpu"], "sh", "-c", f"command -v {command[0]}").returncode == 0
    assert "schema_version: '2.0'" in run(images["cpu"], "sh", "-c", "cat /opt/nim/etc/default/*.yaml").stdout
    for absent in ("pip", "apt-get", "dpkg", "gcc", "perl", "curl"):
        assert run(images["cpu"], "sh", "-c", f"command -v {absent}").returncode != 0
    unknown = run(images["cpu"], "list-profiles")
    assert unknown.returncode == 127
    assert "list-model-profiles" in unknown.stderr


@pytest.mark.docker
@pytest.mark.slow
@pytest.mark.timeout(900)
def test_no_file_of_an_image_is_setuid_or_writable_by_all(images: dict[str, ImageResult]) -> None:
    found = run(images["rtx"], "find", "/", "-xdev", "-perm", "/6000", "-o", "-perm", "-0002", "!", "-type", "l")
    assert set(found.stdout.split()) <= {"/tmp", "/var/tmp"}


@pytest.mark.docker
@pytest.mark.slow
@pytest.mark.timeout(900)
def test_what_the_server_needs_can_be_imported_and_what_tells_on_its_user_is_not_there(
    images: dict[str, ImageResult],
) -> None:
    code = (
        "import blake3, httptools, msgspec, numpy, onnxruntime, openvino, orjson, prometheus_client, pybase64, pynvml\n"
        "import boto3, importlib.util, io, os, tokenizers, uvicorn, uvloop, yaml\n"
        "from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter\n"
        "from opentelemetry.sdk.trace.export import BatchSpanProcessor\n"
        "from PIL import Image\n"
        "for form in ('PNG', 'JPEG', 'WEBP'):\n"
        "    Image.new('RGB', (9, 9)).save(file := io.BytesIO(), form)\n"
        "    Image.open(io.BytesIO(file.getvalue())).resize((4, 4), Image.Resampling.BICUBIC).load()\n"
        "for service in ('s3', 'sts', 'sso', 'sso-oidc'):\n"
        "    boto3.client(service, region_name='us-east-1')\n"
        "OTLPSpanExporter(), BatchSpanProcessor\n"
        "from openvino import Core\n"
        "assert 'CPU' in Core().available_devices\n"
        "assert os.environ['ORT_DISABLE_TELEMETRY'] == '1'\n"
        "names = 'openvino_telemetry huggingface_hub pip torch pipelines'.split()\n"
        "print([name for name in names if importlib.util.find_spec(name)], os.listdir('/tmp'))\n"
    )
    for result in images.values():
        done = run(result, "python3", "-c", code)
        assert (done.returncode, done.stdout.strip()) == (0, "[] []"), done.stderr
        assert "telemetry" not in done.stderr


@pytest.mark.docker
@pytest.mark.slow
@pytest.mark.timeout(900)
def test_tensorrt_for_rtx_loads_in_its_image_without_a_gpu(images: dict[str, ImageResult]) -> None:
    code = (
        "from serving.backends.tensorrt import import_tensorrt_rtx\n"
        "from cuda.bindings import runtime\n"
        "print(import_tensorrt_rtx().__version__, runtime.cudaGetDeviceCount()[0].name)\n"
    )
    done = run(images["rtx"], "python3", "-c", code)
    assert done.stdout.split()[:1] == ["1.7.1.116"], done.stderr


@pytest.mark.docker
@pytest.mark.slow
@pytest.mark.timeout(900)
def test_docker_builds_the_written_context_to_our_layers_and_settings(
    image_store: Path, docker_client: docker.DockerClient, images: dict[str, ImageResult], tmp_path: Path
) -> None:
    store = Store(image_store)
    ours = runtime.prepare(["cpu"], store=store, docker=None)["cpu"].image
    context = image.write_context(dist(tmp_path / "1"), ["cpu"], containers=runtime.CONTAINERS, store=store)
    name = "enginery/test-context:1"
    with imported(store.path(ours.layers[0].blob.digest), "enginery/test-base:2") as base:
        command = ["docker", "build", "--build-arg", f"BASE={base}", "--file", context / "cpu.Dockerfile"]
        subprocess.run([*command, "--tag", name, context], check=True, capture_output=True, timeout=600)
    try:
        settings = docker_client.settings_of(name)
        digests = []
        for stream in docker_client.save_layers(name, tmp_path / "saved"):
            oci.rewrite_layer(stream, tmp_path / "layer")
            digests.append(file_digest(tmp_path / "layer"))
    finally:
        docker_client.remove(name)
    assert digests[:-1] == [layer.blob.digest for layer in ours.layers]  # the last: the model's files
    assert {key: value for key, value in settings.items() if key in dockerfile.KEPT and value} == ours.settings


@pytest.mark.docker
@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_base_by_its_name_in_the_engine_gives_the_layers_of_its_tar(
    image_store: Path, docker_client: docker.DockerClient, images: dict[str, ImageResult], tmp_path: Path, small: Path
) -> None:
    layer = images["cpu"].layers[0]
    with imported(Store(image_store).path(layer.digest), "enginery/test-base:1") as reference:
        store = Store(tmp_path / "store")
        made = runtime.prepare(["cpu"], store=store, docker=docker_client, base=reference, containers=small)["cpu"]
    assert made.image.layers[0].blob.digest == layer.digest


@pytest.mark.docker
@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_engine_has_the_image_under_its_name_and_its_id_is_the_configs_digest(
    docker_client: docker.DockerClient, images: dict[str, ImageResult], image_folder: Path
) -> None:
    for result in images.values():
        assert docker_client.id_of(result.reference) == result.image_id
        assert result.loaded
        config = (image_folder / image.LAYOUT / oci.blob_path(result.image_id)).read_bytes()
        assert f"sha256:{hashlib.sha256(config).hexdigest()}" == result.image_id


@pytest.mark.docker
@pytest.mark.slow
@pytest.mark.timeout(900)
def test_an_image_that_cannot_be_pulled_is_refused_with_the_engines_words(docker_client: docker.DockerClient) -> None:
    with pytest.raises(ImageError, match="localhost:1/nothing:1 could not be pulled"):
        docker_client.pull("localhost:1/nothing:1")
