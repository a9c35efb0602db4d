"""The verbs of an image, run through main with a manifest and files of their own."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from blake3 import blake3

from serving.choice import select
from serving.choice.listing import listing_text, startup_lines
from serving.contract.manifest import Manifest, dump, profile_id
from serving.contract.profile import Gpu, Machine, Profile, ProfileFile
from serving.start import cli

GB = 10**9
FILES = {"engine.plan": b"an engine", "tokenizer.json": b"{}"}
MACHINE = Machine(
    cpu_arch="x86_64",
    cpu_features=frozenset({"avx2", "fpu"}),
    num_cpus=2,
    memory_bytes=2**33,
    runtimes={"onnxruntime": "1.31.1", "tensorrt-rtx": "1.7.1.116"},
    notes=("NVML: Driver Not Loaded",),
)
GPU = Gpu(
    index=0,
    name="NVIDIA L40S",
    pci_device="26b9",
    compute_capability="8.9",
    memory_total_bytes=48 * GB,
    memory_free_bytes=47 * GB,
)
L40S = replace(MACHINE, gpus=(GPU,), notes=())


def a_profile(name: str, **tags: str) -> Profile:
    files = tuple(
        ProfileFile(path=path, uri=f"blobs/blake3/{h}", checksum=f"blake3:{h}", size_bytes=len(data))
        for path, data in FILES.items()
        for h in [blake3(data).hexdigest()]
    )
    tags = {"precision": "fp16", "tp": "1", **tags}
    return Profile(id=profile_id(tags), name=name, tags=tags, files=files, proof_min_cosine=0.98)


GENERIC = a_profile("mini__cpu__fp16__tp1", backend="onnxruntime")
ON_L40S = a_profile(
    "mini__l40s__fp16__tp1",
    backend="tensorrt-rtx",
    sku="l40s",
    gpu_device="26b9:10de",
    compute_capability="8.9",
    min_vram_per_device_gb="4.0",
)
ON_AVX512 = a_profile("mini__avx512__fp16__tp1", backend="onnxruntime", cpu_features="avx512_bf16")
PROFILES = (GENERIC, ON_L40S, ON_AVX512)


@pytest.fixture
def environ(tmp_path: Path) -> dict[str, str]:
    """The environment of an image whose root holds PROFILES and their files."""
    path = tmp_path / "root" / "etc" / "default" / "model_manifest.yaml"
    path.parent.mkdir(parents=True)
    path.write_bytes(dump(Manifest(model="mini", release="0.1.0", profiles=PROFILES)))
    for data in FILES.values():
        blob = tmp_path / "root" / "blobs" / "blake3" / blake3(data).hexdigest()
        blob.parent.mkdir(parents=True, exist_ok=True)
        blob.write_bytes(data)
    return {"ENGINERY_ROOT": str(tmp_path / "root")}


def test_the_list_has_nims_sections_and_every_reason(
    environ: dict[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["list-model-profiles"], environ, MACHINE) == 0
    gpu_refusal = "needs an NVIDIA GPU such as l40s (compute capability 8.9); no GPU found (NVML: Driver Not Loaded)"
    assert capsys.readouterr().out == (
        "SYSTEM INFO\n"
        "- Free GPUs: <None>\n"
        "- Non-free GPUs: <None>\n"
        "- CPU: x86_64, 2 usable, 8.0 GiB of memory\n"
        "- CPU features: avx2\n"
        "- Runtimes: onnxruntime 1.31.1, tensorrt-rtx 1.7.1.116\n"
        "- Note: NVML: Driver Not Loaded\n"
        "MODEL PROFILES\n"
        "- Compatible with system and runnable:\n"
        f"  - {GENERIC.id} (mini__cpu__fp16__tp1)\n"
        "- Compatible with system but not runnable due to low GPU free memory: <None>\n"
        "- Compilable to TRT-LLM using just-in-time compilation of HF models to TRTLLM engines: <None>\n"
        "- Incompatible with system:\n"
        f"  - {ON_AVX512.id} (mini__avx512__fp16__tp1): needs a CPU with avx512_bf16, which this one lacks\n"
        f"  - {ON_L40S.id} (mini__l40s__fp16__tp1) [requires >=4 GB/gpu]: {gpu_refusal}\n"
    )


def test_free_and_busy_gpus_are_listed_apart(environ: dict[str, str], capsys: pytest.CaptureFixture[str]) -> None:
    busy = replace(GPU, index=1, memory_free_bytes=2 * GB, utilization_percent=88)
    cli.main(["list-model-profiles"], environ, replace(L40S, gpus=(GPU, busy)))
    out = capsys.readouterr().out
    assert "- Free GPUs:\n  -  [26b9:10de] (0) NVIDIA L40S (L40S) [current utilization: 0%]\n" in out
    assert "- Non-free GPUs:\n  -  [26b9:10de] (1) NVIDIA L40S (L40S) [current utilization: 88%]\n" in out


def test_a_gpu_that_is_full_puts_its_profile_in_the_section_for_it(
    environ: dict[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    cli.main(["list-model-profiles"], environ, replace(L40S, gpus=(replace(GPU, memory_free_bytes=GB),)))
    out = capsys.readouterr().out
    section = out.partition("due to low GPU free memory:\n")[2].partition("- Compilable")[0]
    assert section == (
        f"  - {ON_L40S.id} (mini__l40s__fp16__tp1) [requires >=4 GB/gpu]: "
        "needs 4.0 GB of free GPU memory and finds 1.0 GB on GPU 0; stop what else runs there\n"
    )


@pytest.mark.parametrize(
    ("tag", "hint"),
    [("4", " [requires >=4 GB/gpu]"), ("18.5", " [requires >=18.5 GB/gpu]"), ("0", ""), ("lots", ""), (None, "")],
)
def test_a_profile_shows_the_gpu_memory_it_needs_where_its_tag_gives_it(tag: str | None, hint: str) -> None:
    tags = {key: value for key, value in ON_L40S.tags.items() if key != "min_vram_per_device_gb"}
    asks = replace(ON_L40S, tags=tags if tag is None else {**tags, "min_vram_per_device_gb": tag})
    (line,) = [line for line in listing_text(select.decide([asks], L40S), L40S).splitlines() if asks.id in line]
    assert line.removeprefix(f"  - {asks.id} (mini__l40s__fp16__tp1)").partition(":")[0] == hint


MACHINES = {
    "no gpu": MACHINE,
    "a free L40S": L40S,
    "a full L40S": replace(L40S, gpus=(replace(GPU, memory_free_bytes=GB),)),
    "another CPU": replace(MACHINE, cpu_arch="aarch64", cpu_features=frozenset()),
    "no runtime": replace(MACHINE, runtimes={}),
}
SECTIONS = {  # NIM's headings -> the JSON's status
    "- Compatible with system and runnable:": "runnable",
    "- Compatible with system but not runnable due to low GPU free memory:": "low-memory",
    "- Incompatible with system:": "incompatible",
}


@pytest.mark.parametrize("machine", MACHINES.values(), ids=MACHINES)
def test_the_json_and_the_text_give_every_profile_the_same_section_reason_and_place(
    environ: dict[str, str], capsys: pytest.CaptureFixture[str], machine: Machine
) -> None:
    assert cli.main(["list-model-profiles"], environ, machine) == 0
    told: dict[str, tuple[str, str | None]] = {}
    status = ""
    for line in capsys.readouterr().out.partition("MODEL PROFILES\n")[2].splitlines():
        if line.startswith("- "):
            status = SECTIONS.get(line.removesuffix(" <None>"), "none")
        else:
            label, _, reason = line.removeprefix("  - ").partition(": ")
            assert label.partition(" ")[0] not in told
            told[label.partition(" ")[0]] = status, reason or None
    assert cli.main(["list-model-profiles", "--json"], environ, machine) == 0
    listed = json.loads(capsys.readouterr().out)["profiles"]
    assert {entry["id"]: (entry["status"], entry["reason"]) for entry in listed} == told
    assert set(told) == {profile.id for profile in PROFILES}
    runnable = [entry["id"] for entry in listed if entry["rank"] is not None]
    assert runnable == [identity for identity, (status, _) in told.items() if status == "runnable"]


def test_the_json_list_gives_the_same_reasons_and_the_ranks(
    environ: dict[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    cli.main(["list-model-profiles", "--json"], environ, L40S)
    listed = json.loads(capsys.readouterr().out)
    facts = {p["name"]: (p["status"], p["rank"], p["gpus"], p["reason"] is None) for p in listed["profiles"]}
    assert facts == {
        "mini__l40s__fp16__tp1": ("runnable", 1, [0], True),
        "mini__cpu__fp16__tp1": ("runnable", 2, [], True),
        "mini__avx512__fp16__tp1": ("incompatible", None, [], False),
    }
    assert listed["profiles"][2]["reason"] == "needs a CPU with avx512_bf16, which this one lacks"
    assert listed["system"]["gpus"][0]["pci_device"] == "26b9"


def test_nims_other_spelling_of_a_verb_works(environ: dict[str, str], capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["nim_list_model_profiles"], environ, MACHINE) == 0
    assert "MODEL PROFILES" in capsys.readouterr().out


def test_the_list_works_on_this_machine_without_gpus(
    environ: dict[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["list-model-profiles"], {**environ, "NIM_CPU_ONLY": "1"}) == 0
    out = capsys.readouterr().out
    assert f"  - {GENERIC.id}" in out.partition("runnable:\n")[2].partition("- Compatible")[0]
    assert "NIM_CPU_ONLY is set" in out


def test_the_startup_lines_are_those_that_nim_users_search_for() -> None:
    decisions = select.decide(PROFILES, L40S)
    lines = startup_lines(decisions, ON_L40S)
    assert lines[:4] == [
        "MODEL PROFILES",
        "Detected 2 compatible profile(s).",
        f"Valid profile: {ON_L40S.id} (mini__l40s__fp16__tp1) on GPUs [0]",
        f"Valid profile: {GENERIC.id} (mini__cpu__fp16__tp1)",
    ]
    assert f"Selected profile: {ON_L40S.id} (mini__l40s__fp16__tp1)" in lines
    assert "Profile metadata: precision: fp16" in lines
    assert sum(line.startswith("Profile metadata: ") for line in lines) == len(ON_L40S.tags)
    assert any(line.startswith(f"Refused profile: {ON_AVX512.id}") and "avx512_bf16" in line for line in lines)


def test_a_manifest_that_is_not_there_is_an_exit_code_and_a_remedy(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["list-model-profiles"], {"ENGINERY_ROOT": "/nonexistent"}, MACHINE) == 20
    assert "set NIM_MANIFEST_PATH" in capsys.readouterr().err


def test_wrong_settings_are_all_said_at_once(environ: dict[str, str], capsys: pytest.CaptureFixture[str]) -> None:
    wrong = {**environ, "NIM_CPU_ONLY": "maybe", "NIM_HTTP_API_PORT": "0", "NIM_LOG_LEVEL": "loud"}
    assert cli.main(["list-model-profiles"], wrong, MACHINE) == 2
    err = capsys.readouterr().err
    assert all(name in err for name in ("NIM_CPU_ONLY='maybe'", "NIM_HTTP_API_PORT='0'", "NIM_LOG_LEVEL='LOUD'"))


@pytest.mark.parametrize("wanted", [[], ["-p", "auto"], ["--profiles", "default"]])
def test_a_download_without_a_name_takes_the_best_profile(
    environ: dict[str, str], wanted: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["download-to-cache", *wanted], environ, L40S) == 0
    assert capsys.readouterr().out.startswith(f"{ON_L40S.id} (mini__l40s__fp16__tp1): 2 files")


def test_a_download_names_profiles_for_other_machines(
    environ: dict[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    named = ["--profiles", ON_L40S.id, "mini__avx512__fp16__tp1"]
    assert cli.main(["download-to-cache", *named], environ, MACHINE) == 0
    out = capsys.readouterr().out
    assert out.count("verified, embedded in the image; nothing to download") == 2


def test_a_download_of_unknown_profiles_lists_the_valid_ones(
    environ: dict[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["download-to-cache", "-p", "nonsense", "mini__l40__fp16__tp1"], environ, MACHINE) == 22
    err = capsys.readouterr().err
    assert "Not all of the provided profiles are supported." in err
    assert "'nonsense'" in err
    assert f"{ON_L40S.id} (mini__l40s__fp16__tp1)  <- did you mean this?" in err


def test_a_download_finds_damage_in_every_profile(
    environ: dict[str, str], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    blob = tmp_path / "root" / "blobs" / "blake3" / blake3(FILES["engine.plan"]).hexdigest()
    blob.write_bytes(b"an_engine")
    assert cli.main(["download-to-cache", "--all"], environ, MACHINE) == 23
    err = capsys.readouterr().err
    assert all(profile.id in err for profile in PROFILES)
    assert err.count("hashes to") == len(PROFILES)


def test_a_model_store_holds_the_files_flat(environ: dict[str, str], tmp_path: Path) -> None:
    store = tmp_path / "new" / "store"
    for _ in range(2):  # a second run replaces what is there
        assert cli.main(["create-model-store", "--profile", GENERIC.id, "-m", str(store)], environ, MACHINE) == 0
        assert {path.name: path.read_bytes() for path in store.iterdir()} == FILES


def test_a_model_store_of_several_profiles_has_a_folder_for_each(environ: dict[str, str], tmp_path: Path) -> None:
    assert cli.main(["create-model-store", "--all", "--model-store", str(tmp_path / "s")], environ, MACHINE) == 0
    assert {path.name for path in (tmp_path / "s").iterdir()} == {profile.id for profile in PROFILES}


def test_a_model_store_that_cannot_be_written_says_so(
    environ: dict[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("")
    store = ["create-model-store", "-p", GENERIC.id, "-m", str(tmp_path / "file" / "store")]
    assert cli.main(store, environ, MACHINE) == 26
    assert "cannot be written" in capsys.readouterr().err


def test_an_unknown_verb_is_refused() -> None:
    with pytest.raises(SystemExit) as caught:
        cli.main(["serve-everything"], {}, MACHINE)
    assert caught.value.code == 2
