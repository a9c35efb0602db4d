"""Selection as a table of data (select_table.yaml): one named test for each rule, and the same end-to-end."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from itertools import permutations
from pathlib import Path
from typing import Any

import pytest
import yaml

from serving.choice import hardware
from serving.choice.select import Decision, decide
from serving.choice.wanted import candidates
from serving.contract import manifest
from serving.contract.profile import Gpu, Machine, Profile, ProfileFile
from serving.errors import NoProfile, WantedProfileError
from serving.settings import settings
from tests.support import nvml_standin

Line = dict[str, Any]
GB = 10**9
TABLE: dict[str, Any] = yaml.safe_load(Path(__file__).with_name("select_table.yaml").read_text())
RULES: dict[str, list[Line]] = TABLE["rules"]
FILE = ProfileFile(path="engine.plan", uri="blobs/e", checksum="blake3:" + "0" * 64, size_bytes=1)


def profile(key: str) -> Profile:
    entry = TABLE["profiles"][key]
    tags = dict(tag.split(":", 1) for tag in entry["tags"].split("|"))
    return Profile(id=entry["id"], name=key, tags=tags, files=(FILE,), proof_min_cosine=0.98)


def gpus_of(line: Line) -> tuple[Gpu, ...]:
    found = []
    for index, at in enumerate(line["at"]):
        at = at if isinstance(at, dict) else {"gpu": at}
        facts = TABLE["gpus"][at["gpu"]]
        gpu = Gpu(
            index=index,
            name=facts["name"],
            pci_device=facts["pci_device"],
            compute_capability=facts["compute_capability"],
            memory_total_bytes=facts["memory_gb"] * GB,
            memory_free_bytes=int(at.get("free_gb", facts["memory_gb"]) * GB),
        )
        found.append(gpu)
    return tuple(found)


def machine_of(line: Line) -> Machine:
    facts = {**TABLE["machine"], **{key: line[key] for key in TABLE["machine"] if key in line}}
    return Machine(
        cpu_arch=facts["cpu_arch"],
        cpu_features=frozenset(facts["cpu_features"]),
        num_cpus=2,
        memory_bytes=16 * GB,
        gpus=gpus_of(line),
        driver_version=str(facts["driver"]),
        runtimes=facts["runtimes"],
    )


def choose(decisions: tuple[Decision, ...], wanted: str) -> str:
    """The name of the profile that the server tries first, as serving.start.boot asks for it."""
    name = settings.load({"NIM_MODEL_PROFILE": wanted}).wanted_profile
    try:
        return candidates(decisions, name)[0].name
    except (NoProfile, WantedProfileError):
        return "none"


def check(rule: str) -> None:
    """Every line of a rule, in every order of its profiles."""
    assert RULES[rule]
    for line in RULES[rule]:
        for offers in permutations(line["offers"]):
            decisions = decide([profile(key) for key in offers], machine_of(line))
            assert choose(decisions, line.get("wanted", "")) == line["chosen"], (rule, line, offers)
            reasons = {d.profile.name: d.refusal or "" for d in decisions}
            for key, words in line.get("refused", {}).items():
                assert words in reasons[key], (rule, line, reasons[key])


def test_a_profile_runs_only_on_a_gpu_of_its_compute_capability() -> None:
    check("a_profile_runs_only_on_a_gpu_of_its_compute_capability")


def test_gpu_models_are_told_apart_by_pci_id_not_by_name() -> None:
    check("gpu_models_are_told_apart_by_pci_id_not_by_name")


def test_a_profile_needs_as_many_gpus_as_it_spans() -> None:
    check("a_profile_needs_as_many_gpus_as_it_spans")


def test_an_engine_runs_only_on_the_cpu_architecture_of_its_host_code() -> None:
    check("an_engine_runs_only_on_the_cpu_architecture_of_its_host_code")


def test_an_engine_needs_the_cpu_features_it_was_compiled_for() -> None:
    check("an_engine_needs_the_cpu_features_it_was_compiled_for")


def test_an_engine_needs_a_driver_as_new_as_it_says() -> None:
    check("an_engine_needs_a_driver_as_new_as_it_says")


def test_an_engine_loads_only_in_the_library_version_that_compiled_it() -> None:
    check("an_engine_loads_only_in_the_library_version_that_compiled_it")


def test_a_backend_must_be_in_the_image() -> None:
    check("a_backend_must_be_in_the_image")


def test_an_engine_needs_free_gpu_memory() -> None:
    check("an_engine_needs_free_gpu_memory")


def test_an_engine_needs_a_gpu_with_enough_memory() -> None:
    check("an_engine_needs_a_gpu_with_enough_memory")


def test_without_a_gpu_no_gpu_profile_runs() -> None:
    check("without_a_gpu_no_gpu_profile_runs")


def test_an_engine_for_this_gpu_is_chosen_over_one_of_its_compute_capability() -> None:
    check("an_engine_for_this_gpu_is_chosen_over_one_of_its_compute_capability")


def test_an_engine_of_the_same_compute_capability_runs_where_there_is_no_closer_one() -> None:
    check("an_engine_of_the_same_compute_capability_runs_where_there_is_no_closer_one")


def test_an_optimised_profile_is_chosen_over_a_generic_one() -> None:
    check("an_optimised_profile_is_chosen_over_a_generic_one")


def test_a_generic_profile_is_the_fallback() -> None:
    check("a_generic_profile_is_the_fallback")


def test_tensorrt_is_chosen_over_onnx() -> None:
    check("tensorrt_is_chosen_over_onnx")


def test_openvino_is_chosen_over_onnx() -> None:
    check("openvino_is_chosen_over_onnx")


def test_later_cpu_instructions_are_chosen_over_earlier_ones() -> None:
    check("later_cpu_instructions_are_chosen_over_earlier_ones")


def test_fp8_is_chosen_before_fp16() -> None:
    check("fp8_is_chosen_before_fp16")


def test_fewer_bits_are_chosen_before_more() -> None:
    check("fewer_bits_are_chosen_before_more")


def test_float_is_chosen_over_int_of_the_same_bits() -> None:
    check("float_is_chosen_over_int_of_the_same_bits")


def test_fp16_is_chosen_over_bf16() -> None:
    check("fp16_is_chosen_over_bf16")


def test_latency_is_chosen_over_throughput() -> None:
    check("latency_is_chosen_over_throughput")


def test_higher_tensor_parallelism_is_chosen() -> None:
    check("higher_tensor_parallelism_is_chosen")


def test_between_equals_the_name_decides() -> None:
    check("between_equals_the_name_decides")


def test_the_rules_hold_in_this_order() -> None:
    check("the_rules_hold_in_this_order")


def test_a_profile_may_be_named_by_id() -> None:
    check("a_profile_may_be_named_by_id")


def test_a_profile_may_be_named_by_its_name() -> None:
    check("a_profile_may_be_named_by_its_name")


def test_a_profile_may_be_named_by_a_unique_prefix_of_its_id() -> None:
    check("a_profile_may_be_named_by_a_unique_prefix_of_its_id")


def test_auto_and_default_mean_that_the_server_chooses() -> None:
    check("auto_and_default_mean_that_the_server_chooses")


def test_a_named_profile_that_cannot_run_here_is_not_replaced_by_another() -> None:
    check("a_named_profile_that_cannot_run_here_is_not_replaced_by_another")


# ---- the table itself -----------------------------------------------------------------------------------------------


def test_every_rule_of_the_table_has_a_test_of_its_name() -> None:
    tests = {name.removeprefix("test_") for name in globals() if name.startswith("test_")}
    assert set(RULES) <= tests


@pytest.mark.parametrize("key", TABLE["profiles"])
def test_the_ids_of_the_table_are_those_of_its_tags(key: str) -> None:
    made = profile(key)
    assert manifest.profile_id(made.tags) == made.id


def test_every_profile_and_gpu_of_the_table_is_in_some_line() -> None:
    lines = [line for rule in RULES.values() for line in rule]
    assert {key for line in lines for key in line["offers"]} == set(TABLE["profiles"])
    named = {at["gpu"] if isinstance(at, dict) else at for line in lines for at in line["at"]}
    assert named == set(TABLE["gpus"])


# ---- the same, end-to-end -------------------------------------------------------------------------------------------

HERE = hardware.detect(cpu_only=True)


def needs_only_what_is_here(line: Line) -> bool:
    """Its GPUs and driver come from the stand-in; its CPU and libraries are this machine's."""
    tags = [profile(key).tags for key in line["offers"]]
    return (
        bool(line["at"])
        and not {"cpu_arch", "cpu_features", "runtimes", "wanted"} & set(line)
        and not any("cpu_features" in tag for tag in tags)
        and all(TABLE["machine"]["runtimes"].get(tag["backend"]) == HERE.runtimes.get(tag["backend"]) for tag in tags)
    )


END_TO_END = [
    pytest.param(line, id=f"{rule}-{number}")
    for rule, lines in RULES.items()
    for number, line in enumerate(lines)
    if number < 2 and needs_only_what_is_here(line)
]


def test_many_lines_of_the_table_are_run_end_to_end() -> None:
    if not {"tensorrt-rtx", "openvino"} <= set(HERE.runtimes):
        pytest.skip("the libraries that compile for GPUs are not installed here")
    assert len(END_TO_END) >= 25


def list_profiles(path: Path, keys: list[str], gpus: str, *arguments: str, **environ: str) -> str:
    """What list-model-profiles prints for these profiles on a machine with these GPUs."""
    offers = tuple(profile(key) for key in keys)
    path.write_bytes(manifest.dump(manifest.Manifest(model="m", release="1", profiles=offers)))
    done = subprocess.run(
        [sys.executable, "-m", "serving", "list-model-profiles", *arguments],
        env=nvml_standin.environ(gpus, NIM_MANIFEST_PATH=str(path), **environ),
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@nvml_standin.needs_compiler
@pytest.mark.parametrize("line", END_TO_END)
def test_the_command_in_an_image_gives_the_tables_choice(line: Line, tmp_path: Path) -> None:
    """manifest and NVML -> list-model-profiles --json: the first is the choice."""
    mib = 2**20
    gpus = ";".join(
        f"{gpu.name},{gpu.pci_device},{gpu.compute_capability.replace('.', ',')},"
        f"{gpu.memory_total_bytes // mib},{gpu.memory_free_bytes // mib}"
        for gpu in gpus_of(line)
    )
    driver = str(line.get("driver", TABLE["machine"]["driver"]))
    path = tmp_path / "model_manifest.yaml"
    listed = json.loads(list_profiles(path, line["offers"], gpus, "--json", NVML_STANDIN_DRIVER=driver))
    assert listed["system"]["driver_version"] == driver
    assert {entry["id"] for entry in listed["profiles"]} == {profile(key).id for key in line["offers"]}
    reasons = {entry["name"]: entry["reason"] or "" for entry in listed["profiles"]}
    for key, words in line.get("refused", {}).items():
        assert words in reasons[key]
    first = listed["profiles"][0]
    assert (first["name"] if first["rank"] == 1 else "none") == line["chosen"]


# ---- docs/selection.md ----------------------------------------------------------------------------------------------

DOCUMENT = nvml_standin.REPOSITORY / "docs/selection.md"


def test_every_rule_of_the_table_is_explained_in_the_document() -> None:
    assert set(RULES) <= set(re.findall(r"`([a-z0-9_]+)`", DOCUMENT.read_text()))


@nvml_standin.needs_compiler
def test_the_documents_example_is_what_the_command_prints(tmp_path: Path) -> None:
    (printed,) = re.findall(r"^(MODEL PROFILES\n.*?)^```$", DOCUMENT.read_text(), re.MULTILINE | re.DOTALL)
    keys = ["l40s-fp8-24gb", "l40s-fp16-8gb", "l4-fp8", "a100-fp16", "l40s-fp16-pp2", "onnx-fp32"]
    if not needs_only_what_is_here({"at": ["l40s"], "offers": keys}):
        pytest.skip("the libraries whose versions the example shows are not installed here")
    text = list_profiles(tmp_path / "m.yaml", keys, "NVIDIA L40S,26b9,8,9,46068,17000,util=64")
    assert "MODEL PROFILES" + text.partition("MODEL PROFILES")[2] == printed
