"""What an image would choose on a GPU: a stand-in for NVIDIA's library under the real nvidia-ml-py."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from pipelines.image.package import tags_of
from pipelines.matrix import load as matrices
from pipelines.plan.layout import graph
from pipelines.plan.toolchain import version_of
from serving.contract import manifest
from serving.contract.profile import Profile, ProfileFile
from tests.support import nvml_standin
from tests.support.nvml_standin import L4, L40S
from tests.support.plans import WORKER
from tests.support.published import MATRIX

pytestmark = nvml_standin.needs_compiler
VERSIONS = {
    "openvino": version_of("openvino"),
    "tensorrt-rtx": version_of("tensorrt-rtx-cu13-bindings"),
    "tensorrt": "11",
}


@pytest.fixture(scope="module")
def demo_manifest(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The manifest that the demo matrix would ship, did every row pass: what is listed reads no engine."""
    demo = matrices.load(MATRIX)
    file = ProfileFile(path="engine.plan", uri="blobs/blake3/" + "0" * 64, checksum="blake3:" + "0" * 64, size_bytes=1)
    profiles = []
    rows = tuple(row for row in demo.rows if row.model.name == "all-minilm-l6-v2")
    for plan in graph(demo, rows, WORKER).rows:
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


def listed(demo_manifest: Path, gpus: str | None, **environ: str) -> dict[str, Any]:
    done = subprocess.run(
        [sys.executable, "-m", "serving", "list-model-profiles", "--json"],
        env=nvml_standin.environ(gpus, NIM_MANIFEST_PATH=str(demo_manifest), **environ),
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    answer: dict[str, Any] = json.loads(done.stdout)
    return answer


def reasons(answer: dict[str, Any]) -> dict[str, str]:
    return {p["tags"]["sku"] + "__" + p["tags"]["precision"]: p["reason"] for p in answer["profiles"] if p["reason"]}


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
def test_each_card_gets_its_own_engine_in_the_narrowest_precision(demo_manifest: Path, gpu: str, best: str) -> None:
    answer = listed(demo_manifest, gpu)
    assert answer["system"]["gpus"][0]["name"] == gpu.split(",")[0]
    assert answer["system"]["driver_version"] == "580.65.06"
    assert answer["profiles"][0]["name"] == f"all-minilm-l6-v2__{best}__tp1"
    assert all(bool(profile["reason"]) == (profile["rank"] is None) for profile in answer["profiles"])


def test_a_card_that_no_row_names_gets_an_engine_of_its_compute_capability(demo_manifest: Path) -> None:
    answer = listed(demo_manifest, "NVIDIA GeForce RTX 4080,2704,8,9,16376,16000")
    assert answer["profiles"][0]["tags"]["compute_capability"] == "8.9"
    assert answer["profiles"][0]["tags"]["precision"] == "fp8"


def test_a_hopper_card_without_an_engine_serves_from_its_cpu_and_says_why(demo_manifest: Path) -> None:
    answer = listed(demo_manifest, "NVIDIA H100 80GB HBM3,2330,9,0,81559,81000")
    assert answer["profiles"][0]["tags"]["backend"] in {"openvino", "onnxruntime"}
    refused = {p["name"]: p["reason"] for p in answer["profiles"] if p["reason"]}
    assert "9.0" in refused["all-minilm-l6-v2__l40s__fp8__tp1"]


def test_a_full_card_is_compatible_but_not_runnable(demo_manifest: Path) -> None:
    answer = listed(demo_manifest, "NVIDIA L40S,26b9,8,9,46068,200")
    profiles = {profile["name"]: profile for profile in answer["profiles"]}
    assert "memory" in profiles["all-minilm-l6-v2__l40s__fp8__tp1"]["reason"]
    assert answer["profiles"][0]["tags"]["backend"] in {"openvino", "onnxruntime"}


def test_nim_cpu_only_looks_for_no_card(demo_manifest: Path) -> None:
    answer = listed(demo_manifest, L40S, NIM_CPU_ONLY="1")
    assert answer["system"]["gpus"] == []
    assert answer["profiles"][0]["tags"]["backend"] in {"openvino", "onnxruntime"}


def test_the_second_of_two_cards_serves_when_the_first_is_full(demo_manifest: Path) -> None:
    answer = listed(demo_manifest, f"NVIDIA L4,27b8,8,9,23034,100;{L40S}")
    assert answer["profiles"][0]["name"] == "all-minilm-l6-v2__l40s__fp8__tp1"
    assert answer["profiles"][0]["gpus"] == [1]


def test_an_engine_for_the_full_card_runs_on_its_relative_but_behind_the_relatives_own(demo_manifest: Path) -> None:
    answer = listed(demo_manifest, f"NVIDIA L4,27b8,8,9,23034,100;{L40S}")
    (on_l4,) = [p for p in answer["profiles"] if p["name"] == "all-minilm-l6-v2__l4__fp8__tp1"]
    assert (on_l4["status"], on_l4["gpus"]) == ("runnable", [1])
    assert on_l4["rank"] > 2  # after fp8 and fp16 of the L40S


def test_a_card_that_is_lost_while_it_is_asked_is_noted_and_the_other_serves(demo_manifest: Path) -> None:
    answer = listed(demo_manifest, f"{L40S},lost=3;{L4}")
    assert [gpu["name"] for gpu in answer["system"]["gpus"]] == ["NVIDIA L4"]
    assert answer["system"]["notes"] == ["NVML: GPU 0 cannot be used: GPU is lost"]
    assert answer["profiles"][0]["name"] == "all-minilm-l6-v2__l4__fp8__tp1"
    assert answer["profiles"][0]["gpus"] == [1]


def test_when_every_card_is_lost_the_cpu_serves_and_each_gpu_profile_says_why(demo_manifest: Path) -> None:
    answer = listed(demo_manifest, f"{L40S},lost=0")
    assert answer["profiles"][0]["tags"]["backend"] in {"openvino", "onnxruntime"}
    assert "no GPU found (NVML: GPU 0 cannot be used: GPU is lost)" in reasons(answer)["l40s__fp8"]


def test_without_a_driver_each_gpu_profile_says_so(demo_manifest: Path) -> None:
    """The stand-in answers that no driver is loaded: the server reads it, not a real library of this machine."""
    answer = listed(demo_manifest, None)
    assert "Driver Not Loaded" in answer["system"]["notes"][0]
    assert "Driver Not Loaded" in reasons(answer)["l40s__fp8"]


def test_a_card_that_cuda_hides_serves_nothing(demo_manifest: Path) -> None:
    answer = listed(demo_manifest, f"{L40S};{L4}", CUDA_VISIBLE_DEVICES="1")
    assert answer["profiles"][0]["name"] == "all-minilm-l6-v2__l4__fp8__tp1"
    assert answer["profiles"][0]["gpus"] == [0]  # as CUDA numbers what it sees
    assert "hides 1 of 2 GPUs" in " ".join(answer["system"]["notes"])
