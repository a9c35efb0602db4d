"""inspect, explain and diff, as a person types them: of a bucket, a registry, an image and a folder."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from pipelines.image.package import MANIFEST, ROOT
from pipelines.inspect import resolve, verify
from pipelines.inspect.explain import explain
from pipelines.matrix.load import load
from pipelines.publish.dispatch import publish
from pipelines.release import oci_artifact
from pipelines.remote.address import parse
from pipelines.remote.bucket import Bucket
from pipelines.remote.registry import Registry
from serving.choice import hardware
from tests.support import nvml_standin, servers
from tests.support.published import MATRIX, ROWS, VERSIONS, packaged, run
from tests.support.registries import imaged

SKUS = load(MATRIX).skus
EVERY_GPU = [name for name, sku in SKUS.items() if sku.kind == "gpu"]
MANY = tuple(
    (sku, precision)
    for sku, precisions in {
        "l40s": ("fp16", "fp8"),
        "l4": ("fp16",),
        "a10g": ("fp16",),
        "h100-sxm-80gb": ("fp16", "fp8"),
        "rtx-5090": ("fp8",),
        "cpu-x86-64": ("fp32",),
        "cpu-avx2": ("fp32",),
        "cpu-avx512-bf16": ("bf16",),
    }.items()
    for precision in precisions
)


@pytest.fixture(scope="module")
def bucket(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mapping[str, str]]:
    """The environment of a bucket with three releases: the second changed and added, the third is the first again."""
    folder = tmp_path_factory.mktemp("bucket")
    with servers.s3(folder, {}) as url, pytest.MonkeyPatch.context() as patch:
        environ = {**servers.KEYS, "AWS_ENDPOINT_URL": url}
        for name, value in environ.items():
            patch.setenv(name, value)
        first = packaged(folder / "1")
        second = packaged(folder / "2", {"8.9-fp8": b"other"}, release="1.1.0", rows=(*ROWS[1:], ("a10g", "fp16")))
        for each in (first, second, first):
            publish(each, "s3://mirror/models")
        yield environ


def test_inspect_shows_profiles_sizes_figures_and_what_does_not_ship(bucket: Mapping[str, str]) -> None:
    done = run("inspect", "s3://mirror/models/tiny", environ=bucket)
    assert done.returncode == 0, done.stderr
    assert "number 3 of 3" in done.stdout
    assert "4 profiles, 6 files" in done.stdout
    (line,) = (line for line in done.stdout.splitlines() if line.startswith("tiny__l40s__fp8__tp1"))
    assert line.split() == [
        "tiny__l40s__fp8__tp1",
        "tensorrt-rtx",
        "0.0",
        "MB",
        "2",
        "GB",
        "cosine_mean",
        "0.999",
        "(0.99)",
    ]
    assert "tiny__h100-sxm-80gb__fp16__tp1: no worker" in done.stdout
    assert "NIM_REPOSITORY_OVERRIDE=s3://mirror/models" in done.stdout


@pytest.mark.parametrize(
    ("suffix", "release", "number"), [("", "1.0.0", 3), ("~1", "1.1.0", 2), ("@2", "1.1.0", 2), (":1.1.0", "1.1.0", 2)]
)
def test_earlier_releases_have_names(suffix: str, release: str, number: int, bucket: Mapping[str, str]) -> None:
    said = json.loads(run("inspect", f"s3://mirror/models/tiny{suffix}", "--json", environ=bucket).stdout)
    assert (said["release"], said["published"]["sequence"]) == (release, number)
    again = json.loads(run("inspect", f"s3://mirror/models/tiny@{said['digest']}", "--json", environ=bucket).stdout)
    assert again["digest"] == said["digest"]


@pytest.mark.parametrize(
    ("reference", "words"),
    [
        ("s3://mirror/models", "a reference ends in the model's name"),
        ("s3://mirror/models/other", "404"),
        ("s3://mirror/models/tiny:9.9", "no such release of tiny; there are:\n  @3  1.0.0"),
        ("nothing at all", "is no reference; give s3://"),
    ],
)
def test_a_reference_that_leads_nowhere_says_what_would(reference: str, words: str, bucket: Mapping[str, str]) -> None:
    done = run("inspect", reference, environ=bucket)
    assert done.returncode == 19
    assert words in done.stderr


def test_a_release_of_a_registry_is_inspected_by_its_tag_and_beside_each_image(
    registry_host: str,
    containers: Path,
    tmp_path: Path,
) -> None:
    folder = imaged(tmp_path, containers)
    publish(folder, f"oci://{registry_host}/team/inspected:1.0.0")
    whole = json.loads(run("inspect", f"oci://{registry_host}/team/inspected:1.0.0", "--json", environ={}).stdout)
    assert [one["kind"] for one in whole["images"]] == ["full", "slim"]
    image = f"{registry_host}/team/inspected@{whole['images'][0]['digest']}"
    beside = json.loads(run("inspect", image, "--json", environ={}).stdout)
    assert beside["digest"] == whole["digest"]
    assert beside["runtime"] == "cpu"
    explained = run("explain", f"{registry_host}/team/inspected:1.0.0-cpu", "--gpu", "l40s", "--json", environ={})
    assert json.loads(explained.stdout)["chosen"]["name"] == "tiny__cpu-x86-64__fp32__tp1"


def test_explain_gives_the_choice_and_a_reason_for_every_other_profile(bucket: Mapping[str, str]) -> None:
    done = run("explain", "s3://mirror/models/tiny", "--gpu", "l40s", environ=bucket)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[0] == "ON l40s (image rtx, driver 580.65.06)"
    assert "CHOSEN on l40s: tiny__l40s__fp8__tp1" in done.stdout
    said = json.loads(run("explain", "s3://mirror/models/tiny", "--gpu", "t4", "--json", environ=bucket).stdout)
    assert said["chosen"]["name"] == "tiny__cpu-x86-64__fp32__tp1"
    assert all(
        ("compute capability 7.5" in p["reason"]) == ("l4" in p["name"]) for p in said["profiles"] if p["reason"]
    )


def test_explain_answers_for_each_sku_of_the_matrix(bucket: Mapping[str, str]) -> None:
    said = json.loads(run("explain", "s3://mirror/models/tiny", "--json", environ=bucket).stdout)
    assert {each["sku"]: each["chosen"]["name"].split("__")[1] for each in said} == {
        sku: {"l40s": "l40s", "l4": "l4", "rtx-6000-ada": "l40s", "rtx-4090": "l40s"}.get(sku, "cpu-x86-64")
        for sku in SKUS
    }


def test_a_sku_that_the_release_does_not_know_is_answered_with_those_it_does(bucket: Mapping[str, str]) -> None:
    done = run("explain", "s3://mirror/models/tiny", "--gpu", "l40", environ=bucket)
    assert done.returncode == 19
    assert "did you mean l40s" in done.stderr


def test_nothing_that_would_run_has_an_exit_code_of_its_own(bucket: Mapping[str, str]) -> None:
    done = run("explain", "s3://mirror/models/tiny~1", "--gpu", "t4", environ=bucket)
    assert done.returncode == 3
    assert "CHOSEN on t4: none: the server would not start" in done.stdout


@pytest.mark.slow
@nvml_standin.needs_compiler
def test_explain_says_what_the_server_decides_on_every_gpu_of_the_matrix(tmp_path: Path) -> None:
    """The real server, on the real nvidia-ml-py, with a library in NVML's place that reports each GPU."""
    folder = packaged(tmp_path, rows=MANY)
    release = resolve.read(str(folder)).release
    here = hardware.detect(cpu_only=True)
    assert {name: VERSIONS[name] for name in here.runtimes} == here.runtimes  # or the two could not agree

    def servers_answer(name: str) -> Any:
        sku = SKUS[name]
        major, minor = (sku.compute_capability or "").split(".")
        memory = int((sku.memory_gib or 0) * 1024)
        gpu = f"NVIDIA {name},{sku.pci_ids[0]},{major},{minor},{memory},{memory}"
        environ = nvml_standin.environ(
            gpu, NVML_STANDIN_DRIVER="580.65.06", NIM_MANIFEST_PATH=str(folder / ROOT / MANIFEST)
        )
        command = [sys.executable, "-m", "serving", "list-model-profiles", "--json"]
        done = subprocess.run(command, env=environ, capture_output=True, text=True, check=True, timeout=60)
        return json.loads(done.stdout)

    with ThreadPoolExecutor(2) as pool:
        answers = dict(zip(EVERY_GPU, pool.map(servers_answer, EVERY_GPU), strict=True))
    for sku, answer in answers.items():
        ours = explain(release, sku, runtime="rtx", cpu_features=here.cpu_features).json()
        theirs = {p["name"]: p for p in answer["profiles"]}
        for profile in ours["profiles"]:
            assert profile == theirs[profile["name"]], sku
        (first,) = (p["name"] for p in answer["profiles"] if p["rank"] == 1)
        assert ours["chosen"]["name"] == first
    assert len({explain(release, sku, runtime="rtx").json()["chosen"]["name"] for sku in EVERY_GPU}) > 4


@pytest.mark.parametrize("sku", [name for name, sku in SKUS.items() if sku.kind == "cpu"])
def test_a_cpu_of_a_sku_runs_what_is_compiled_for_it(sku: str, tmp_path: Path) -> None:
    release = resolve.read(str(packaged(tmp_path, rows=MANY))).release
    chosen = explain(release, sku).chosen
    best = {"cpu-amx": "cpu-avx512-bf16"}.get(sku, sku)
    assert chosen is not None
    assert chosen.tags["sku"] == best


def test_diff_shows_what_was_added_removed_and_changed(bucket: Mapping[str, str]) -> None:
    done = run("diff", "s3://mirror/models/tiny", "s3://mirror/models/tiny~1", environ=bucket)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[0] == "tiny 1.0.0 -> tiny 1.1.0"
    assert "+ tiny__a10g__fp16__tp1  0.0 MB" in lines
    assert "- tiny__cpu-x86-64__fp32__tp1  its row is no longer built" in lines
    assert lines[lines.index("~ tiny__l40s__fp8__tp1") + 1].strip().startswith("engine: other bytes")
    assert "1 added, 1 removed, 1 changed, 2 the same" in done.stdout


def test_diff_shows_figures_that_moved_and_the_same_release_is_said_to_be_the_same(tmp_path: Path) -> None:
    first, second = packaged(tmp_path / "1"), packaged(tmp_path / "2")
    path = second / "package.json"
    path.write_text(path.read_text().replace("0.999", "0.9985", 1))
    said = run("diff", first, second, environ={}).stdout
    assert "cosine_mean: 0.999 -> 0.9985 (-0.0005)" in said
    (changed,) = json.loads(run("diff", first, second, "--json", environ={}).stdout)["changed"]
    assert changed["metrics"] == {"cosine_mean": [0.999, 0.9985]}
    assert "the same release" in run("diff", first, first, environ={}).stdout


def test_a_built_folder_is_compared_with_what_is_published(bucket: Mapping[str, str], tmp_path: Path) -> None:
    folder = packaged(tmp_path, {"8.9-fp16": b"newer"}, release="1.2.0")
    said = run("diff", "s3://mirror/models/tiny", folder, environ=bucket).stdout
    assert "tiny 1.0.0 -> tiny 1.2.0" in said
    assert "~ tiny__l4__fp16__tp1" in said


def test_verify_reads_every_byte_that_is_published_and_names_each_that_is_wrong(
    bucket: Mapping[str, str], tmp_path: Path
) -> None:
    folder = packaged(tmp_path, {"8.9-fp16": b"whole"}, model="verified")
    publish(folder, "s3://mirror/models")
    done = run("inspect", "s3://mirror/models/verified", "--verify", environ=bucket)
    assert (done.returncode, "6 files" in done.stderr) == (0, True), done.stderr
    files = {file.checksum: file for p in resolve.read(str(folder)).release.manifest.profiles for file in p.files}
    changed = next(file for file in files.values() if file.size_bytes == 5)
    Bucket("s3://mirror/models").put(changed.uri, b"wrong")
    done = run("inspect", "s3://mirror/models/verified", "--verify", environ=bucket)
    assert done.returncode == 19
    assert f"{changed.uri}: hashes to blake3:" in done.stderr


def test_verify_looks_at_each_image_of_a_registry(
    registry_host: str,
    containers: Path,
    tmp_path: Path,
) -> None:
    folder = imaged(tmp_path, containers)
    publish(folder, f"oci://{registry_host}/team/verified:1.0.0")
    checked = verify.verify(f"oci://{registry_host}/team/verified:1.0.0")
    assert (checked.problems, checked.num_files, checked.num_images) == ((), 6, 2)
    assert verify.verify(str(folder)) == replace(checked, resolved=resolve.read(str(folder)))
    # The same release where only its artifact was copied.
    copied = Registry(parse(f"oci://{registry_host}/team/copied"))
    for _, blob, source in oci_artifact.contents(folder).layers:
        copied.push_blob(blob, source)
    copied.push_blob(oci_artifact.oci.blob_of(oci_artifact.EMPTY), oci_artifact.EMPTY)
    copied.push_manifest("1.0.0", oci_artifact.contents(folder).manifest)
    problems = verify.verify(f"oci://{registry_host}/team/copied:1.0.0").problems
    assert len(problems) == 2
    assert all("is not there" in problem for problem in problems)


def test_verify_reads_a_dist_folder_and_its_images_too(containers: Path, tmp_path: Path) -> None:
    folder = imaged(tmp_path, containers)
    assert verify.verify(str(folder)).problems == ()
    engine = next(path for path in (folder / "rootfs").rglob("*") if path.is_file() and path.read_bytes() == b"8.9-fp8")
    (folder / "model_manifest.yaml").write_text("other\n")
    layer = max((folder / "oci" / "blobs").rglob("*"), key=lambda path: path.stat().st_size)
    for damaged in (engine, layer):
        data = damaged.read_bytes()
        damaged.unlink()
        damaged.write_bytes(data[:-1] + b"!")
    said = run("inspect", folder, "--verify", environ={})
    assert (said.returncode, "build the model again" in said.stderr) == (19, True)
    for words in (
        f"{engine.name}: hashes to blake3:",
        "model_manifest.yaml: is not",
        f"{layer.name} hashes to sha256:",
    ):
        assert words in said.stderr
