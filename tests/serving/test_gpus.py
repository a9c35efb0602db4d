"""What an image would choose on a GPU: a stand-in for NVIDIA's library under the real nvidia-ml-py."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from pipelines import matrix as matrices
from pipelines.package import tags_of
from pipelines.steps import graph
from pipelines.toolchain import version_of
from serving import manifest
from serving.profile import Profile, ProfileFile
from tests.pipelines.test_plan import DEMO, WORKER

COMPILER = shutil.which("cc")
pytestmark = pytest.mark.skipif(COMPILER is None, reason="needs a C compiler for the stand-in of libnvidia-ml")
VERSIONS = {
    "openvino": version_of("openvino"),
    "tensorrt-rtx": version_of("tensorrt-rtx-cu13-bindings"),
    "tensorrt": "11",
}


@pytest.fixture(scope="module")
def nvml(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("nvml")
    source = Path(__file__).with_name("nvml_standin.c")
    command = [
        str(COMPILER),
        "-shared",
        "-fPIC",
        "-Wall",
        "-Werror",
        "-o",
        str(folder / "libnvidia-ml.so.1"),
        str(source),
    ]
    subprocess.run(command, check=True)
    return folder


@pytest.fixture(scope="module")
def demo_manifest(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The manifest that the demo matrix would ship, did every row pass: what is listed reads no engine."""
    demo = matrices.load(DEMO)
    file = ProfileFile(path="engine.plan", uri="blobs/blake3/" + "0" * 64, checksum="blake3:" + "0" * 64, size_bytes=1)
    profiles = []
    for plan in graph(demo, demo.rows, WORKER).rows:
        if plan.refusal is None and plan.row.precision != "int8":
            tags = tags_of(plan.row, VERSIONS, 50_000_000)
            profiles.append(
                Profile(
                    id=manifest.profile_id(tags), name=plan.row.name, tags=tags, files=(file,), proof_min_cosine=0.99
                )
            )
    path = tmp_path_factory.mktemp("manifest") / "model_manifest.yaml"
    path.write_bytes(manifest.dump(manifest.Manifest(model="m", release="1", profiles=tuple(profiles))))
    return path


def listed(nvml: Path, demo_manifest: Path, gpus: str, **environ: str) -> dict[str, Any]:
    done = subprocess.run(
        [sys.executable, "-m", "serving", "list-model-profiles", "--json"],
        env={
            **os.environ,
            "LD_LIBRARY_PATH": str(nvml),
            "NVML_STANDIN": gpus,
            "NIM_MANIFEST_PATH": str(demo_manifest),
            "PYTHONPATH": str(DEMO.parent),
            **environ,
        },
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    answer: dict[str, Any] = json.loads(done.stdout)
    return answer


@pytest.mark.parametrize(
    ("gpu", "best"),
    [
        ("NVIDIA L40S,26b9,8,9,46068,45000", "l40s__fp8"),
        ("NVIDIA L4,27b8,8,9,23034,22000", "l4__fp8"),
        ("NVIDIA GeForce RTX 4090,2684,8,9,24564,24000", "rtx-4090__fp8"),
        ("NVIDIA GeForce RTX 5090,2b85,12,0,32607,32000", "rtx-5090__fp8"),
        ("NVIDIA RTX PRO 6000 Blackwell Server Edition,2bb5,12,0,97887,97000", "rtx-pro-6000-blackwell__fp8"),
        ("NVIDIA A100-SXM4-80GB,20b2,8,0,81920,81000", "a100-sxm-80gb__fp16"),
        ("NVIDIA A10G,2237,8,6,23028,22000", "a10g__fp16"),
        ("NVIDIA RTX A6000,2230,8,6,49140,48000", "rtx-a6000__fp16"),
        ("Tesla T4,1eb8,7,5,15360,15000", "t4__fp16"),
    ],
)
def test_each_card_gets_its_own_engine_in_the_narrowest_precision(
    nvml: Path, demo_manifest: Path, gpu: str, best: str
) -> None:
    answer = listed(nvml, demo_manifest, gpu)
    assert answer["system"]["gpus"][0]["name"] == gpu.split(",")[0]
    assert answer["system"]["driver_version"] == "580.65.06"
    assert answer["profiles"][0]["name"] == f"all-minilm-l6-v2__{best}__tp1"
    assert all(bool(profile["reason"]) == (profile["rank"] is None) for profile in answer["profiles"])


def test_a_card_that_no_row_names_gets_an_engine_of_its_compute_capability(nvml: Path, demo_manifest: Path) -> None:
    answer = listed(nvml, demo_manifest, "NVIDIA GeForce RTX 4080,2704,8,9,16376,16000")
    assert answer["profiles"][0]["tags"]["compute_capability"] == "8.9"
    assert answer["profiles"][0]["tags"]["precision"] == "fp8"


def test_a_hopper_card_without_an_engine_serves_from_its_cpu_and_says_why(nvml: Path, demo_manifest: Path) -> None:
    answer = listed(nvml, demo_manifest, "NVIDIA H100 80GB HBM3,2330,9,0,81559,81000")
    assert answer["profiles"][0]["tags"]["backend"] in {"openvino", "onnxruntime"}
    refused = {p["name"]: p["reason"] for p in answer["profiles"] if p["reason"]}
    assert "9.0" in refused["all-minilm-l6-v2__l40s__fp8__tp1"]


def test_a_full_card_is_compatible_but_not_runnable(nvml: Path, demo_manifest: Path) -> None:
    answer = listed(nvml, demo_manifest, "NVIDIA L40S,26b9,8,9,46068,200")
    profiles = {profile["name"]: profile for profile in answer["profiles"]}
    assert "memory" in profiles["all-minilm-l6-v2__l40s__fp8__tp1"]["reason"]
    assert answer["profiles"][0]["tags"]["backend"] in {"openvino", "onnxruntime"}


def test_nim_cpu_only_looks_for_no_card(nvml: Path, demo_manifest: Path) -> None:
    answer = listed(nvml, demo_manifest, "NVIDIA L40S,26b9,8,9,46068,45000", NIM_CPU_ONLY="1")
    assert answer["system"]["gpus"] == []
    assert answer["profiles"][0]["tags"]["backend"] in {"openvino", "onnxruntime"}


def test_the_second_of_two_cards_serves_when_the_first_is_full(nvml: Path, demo_manifest: Path) -> None:
    answer = listed(nvml, demo_manifest, "NVIDIA L4,27b8,8,9,23034,100;NVIDIA L40S,26b9,8,9,46068,45000")
    assert answer["profiles"][0]["name"] == "all-minilm-l6-v2__l40s__fp8__tp1"
    assert answer["profiles"][0]["gpus"] == [1]


def test_the_stand_in_is_what_the_server_reads(nvml: Path) -> None:
    """Without NVML_STANDIN the library answers that no driver is loaded, and detection notes it."""
    code = "from serving import hardware; print(hardware.detect().notes)"
    environ = {name: value for name, value in os.environ.items() if name != "NVML_STANDIN"}
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**environ, "LD_LIBRARY_PATH": str(nvml), "PYTHONPATH": str(DEMO.parent)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert "Driver Not Loaded" in done.stdout
