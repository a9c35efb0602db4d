"""Selection as a table: machines and profiles built by hand, one named test per rule."""

from __future__ import annotations

from dataclasses import replace
from itertools import permutations

import pytest

from serving.choice.select import Fit, decide, rank, refusal
from serving.contract.manifest import profile_id
from serving.contract.profile import Gpu, Machine, Profile

GB = 10**9


def a_profile(name: str, **tags: str) -> Profile:
    return Profile(id=profile_id({"row": name, **tags}), name=name, tags=tags, files=(), proof_min_cosine=0.98)


def gpu_profile(name: str, device: str = "26b9:10de", cc: str = "8.9", precision: str = "fp16", **tags: str) -> Profile:
    base = {"backend": "tensorrt-rtx", "sku": name.split("__")[0], "gpu_device": device, "compute_capability": cc}
    more = {"precision": precision, "tp": "1", "trt_version": "1.7.1.116", "cpu_arch": "x86_64"}
    return a_profile(name, **{**base, **more, **tags})


def cpu_profile(name: str, features: str = "avx512_bf16", precision: str = "bf16", **tags: str) -> Profile:
    base = {"backend": "openvino", "cpu_arch": "x86_64", "cpu_features": features, "openvino_version": "2026.4.1"}
    return a_profile(name, **{**base, "precision": precision, "tp": "1", **tags})


def generic(name: str = "generic__fp32", precision: str = "fp32", **tags: str) -> Profile:
    return a_profile(name, backend="onnxruntime", precision=precision, tp="1", **tags)


def a_gpu(index: int = 0, device: str = "26b9", cc: str = "8.9", total: float = 48, free: float | None = None) -> Gpu:
    return Gpu(
        index=index,
        name=f"NVIDIA {device}",
        pci_device=device,
        compute_capability=cc,
        memory_total_bytes=int(total * GB),
        memory_free_bytes=int((total if free is None else free) * GB),
    )


CPU = Machine(
    cpu_arch="x86_64",
    cpu_features=frozenset({"avx2", "avx512f", "avx512_bf16"}),
    num_cpus=2,
    memory_bytes=16 * GB,
    runtimes={
        "onnxruntime": "1.31.1",
        "openvino": "2026.4.1-21234-releases/2026/4",
        "tensorrt-rtx": "1.7.1.116",
        "tensorrt": "11.0.0",
    },
    notes=("NVML: Driver Not Loaded",),
)
L40S = replace(CPU, gpus=(a_gpu(),), notes=())


def order(machine: Machine, *profiles: Profile) -> list[str]:
    """The names of those that may run, best first; the same for any order of the profiles."""
    found = {tuple(p.name for p in rank(decide(some, machine))) for some in permutations(profiles)}
    assert len(found) == 1
    return list(found.pop())


# ---- refusals -------------------------------------------------------------------------------------------------------


def why(profile: Profile, machine: Machine) -> str:
    reason = refusal(profile, machine)
    assert reason is not None
    return reason


def test_every_profile_gets_a_decision_in_order() -> None:
    profiles = (gpu_profile("a"), generic(), cpu_profile("b", "amx_bf16"))
    decisions = decide(profiles, CPU)
    assert tuple(d.profile for d in decisions) == profiles
    assert [d.refusal is None for d in decisions] == [False, True, False]


def test_a_generic_profile_runs_anywhere_its_runtime_is() -> None:
    arm = replace(CPU, cpu_arch="aarch64", cpu_features=frozenset({"asimd"}))
    assert refusal(generic(), CPU) is refusal(generic(), arm) is refusal(generic(), L40S) is None


def test_a_runtime_that_is_not_in_the_image_is_named_with_those_that_are() -> None:
    slim = replace(L40S, runtimes={"onnxruntime": "1.31.1"})
    reason = why(gpu_profile("l40s"), slim)
    assert reason == "needs the runtime tensorrt-rtx, which is not in this image (it has onnxruntime 1.31.1)"


def test_a_backend_that_this_server_does_not_know_is_refused() -> None:
    assert "backend 'triton' is not one this server knows" in why(
        a_profile("x", backend="triton", precision="fp16"), CPU
    )
    assert "backend '' is not one" in why(a_profile("x", precision="fp16"), CPU)


def test_another_cpu_architecture_is_refused() -> None:
    grace = replace(L40S, cpu_arch="aarch64")
    assert "needs an x86_64 CPU, this one is aarch64" in why(gpu_profile("l40s"), grace)


def test_missing_cpu_features_are_named() -> None:
    reason = why(cpu_profile("amx", "avx2,amx_tile,amx_bf16"), CPU)
    assert reason == "needs a CPU with amx_tile, amx_bf16, which this one lacks"


def test_a_gpu_profile_without_a_gpu_says_why_none_was_found() -> None:
    reason = why(gpu_profile("l40s"), CPU)
    assert reason == "needs an NVIDIA GPU such as l40s (compute capability 8.9); no GPU found (NVML: Driver Not Loaded)"


def test_cpu_only_is_given_as_the_reason() -> None:
    machine = replace(CPU, notes=("NIM_CPU_ONLY is set: GPUs were not looked for",))
    assert "NIM_CPU_ONLY is set" in why(gpu_profile("l40s"), machine)


def test_a_gpu_tag_needs_a_gpu_whatever_the_backend() -> None:
    assert "no GPU found" in why(generic(gpu="l40s", compute_capability="8.9"), CPU)


def test_another_compute_capability_is_refused_and_both_are_named() -> None:
    reason = why(gpu_profile("h100-sxm", "2330:10de", "9.0"), L40S)
    assert "compute capability 9.0" in reason
    assert "NVIDIA 26b9 [26b9] of compute capability 8.9" in reason


def test_a_listed_device_of_another_compute_capability_is_refused() -> None:
    assert "was compiled for" in why(gpu_profile("wrong", "26b9:10de", "9.0"), L40S)


def test_names_that_contain_each_other_do_not_match() -> None:
    """L4 is 27b8, L40S is 26b9; NIM's operator takes one for the other by name."""
    only_device = a_profile("l4", backend="tensorrt", precision="fp16", gpu="l4", gpu_device="27b8:10de")
    assert "was compiled for" in why(only_device, L40S)


@pytest.mark.parametrize("tag", ["26b9", "26b9:10de", "26B9:10DE", "27b8:10de,26b9:10de", "27b8:10de, 26b9"])
def test_pci_ids_match_in_every_spelling_that_nim_uses(tag: str) -> None:
    (decision,) = decide([a_profile("x", backend="tensorrt", precision="fp16", gpu_device=tag)], L40S)
    assert (decision.refusal, decision.gpus) == (None, (0,))


def test_a_gpu_profile_that_names_no_gpu_is_refused() -> None:
    assert "names neither gpu_device nor compute_capability" in why(
        a_profile("x", backend="tensorrt", precision="fp16", gpu="l40s"), L40S
    )


def test_another_model_of_the_same_compute_capability_may_run() -> None:
    assert refusal(gpu_profile("l4", "27b8:10de"), L40S) is None


def test_too_few_gpus_are_counted() -> None:
    assert "needs 2 GPUs like" in why(gpu_profile("l40s", number_of_gpus="2"), L40S)
    assert "needs 4 GPUs like" in why(gpu_profile("l40s", tp="4"), L40S)
    two = replace(L40S, gpus=(a_gpu(0), a_gpu(1, "2330", "9.0"), a_gpu(2)))
    (decision,) = decide([gpu_profile("l40s", tp="2")], two)
    assert (decision.refusal, decision.gpus) == (None, (0, 2))


def test_a_profile_of_two_gpus_is_chosen_only_where_two_of_its_sku_are_free() -> None:
    one, two = (
        gpu_profile(f"l40s__tp{tp}", tp=str(tp), number_of_gpus=str(tp), min_vram_per_device_gb="8") for tp in (1, 2)
    )

    def chosen(*gpus: Gpu) -> list[tuple[str, tuple[int, ...]]]:
        decisions = decide([one, two], replace(L40S, gpus=gpus))
        gpus_of = {decision.profile.name: decision.gpus for decision in decisions}
        return [(profile.name, gpus_of[profile.name]) for profile in rank(decisions)]

    both = chosen(a_gpu(0), a_gpu(1))
    assert both[0] == ("l40s__tp2", (0, 1))
    assert len(both) == 2
    for gpus in ((a_gpu(0),), (a_gpu(0), a_gpu(1, free=3)), (a_gpu(0), a_gpu(1, "2330", "9.0"))):
        assert chosen(*gpus) == [("l40s__tp1", (0,))]
    third = chosen(a_gpu(0), a_gpu(1, free=3), a_gpu(2))
    assert third[0] == ("l40s__tp2", (0, 2))


def test_a_gpu_that_is_too_small_will_never_do() -> None:
    (decision,) = decide([gpu_profile("l40s", min_vram_per_device_gb="80.0")], L40S)
    assert decision.refusal == "needs 80.0 GB of memory on each of 1 GPU(s); the largest here has 48.0 GB"
    assert not decision.low_memory


def test_a_gpu_that_is_full_is_its_own_class_of_refusal() -> None:
    busy = replace(L40S, gpus=(a_gpu(free=3),))
    (decision,) = decide([gpu_profile("l40s", min_vram_per_device_gb="8.0")], busy)
    assert decision.low_memory
    assert decision.refusal is not None
    assert "needs 8.0 GB of free GPU memory and finds 3.0 GB on GPU 0; stop what else runs there" in decision.refusal


def test_low_memory_beside_another_reason_is_plain_incompatibility() -> None:
    busy = replace(L40S, gpus=(a_gpu(free=3),), runtimes={})
    (decision,) = decide([gpu_profile("l40s", min_vram_per_device_gb="8.0")], busy)
    assert not decision.low_memory
    assert decision.gpus == ()


def test_the_emptiest_gpu_with_room_is_used() -> None:
    machine = replace(L40S, gpus=(a_gpu(0, free=3), a_gpu(1, free=20), a_gpu(2, free=40)))
    (decision,) = decide([gpu_profile("l40s", min_vram_per_device_gb="8.0")], machine)
    assert decision.gpus == (2,)


def test_the_very_model_is_used_before_an_emptier_relative() -> None:
    machine = replace(L40S, gpus=(a_gpu(0, "27b8", total=80), a_gpu(1)))
    (decision,) = decide([gpu_profile("l40s")], machine)
    assert decision.gpus == (1,)


def test_a_full_gpu_of_the_very_model_does_not_keep_an_engine_from_its_relatives() -> None:
    full, relatives = a_gpu(0, free=0), (a_gpu(1, "27b8"), a_gpu(2, "27b8"))
    for tp, expected in (("1", (1,)), ("2", (1, 2))):
        profile = gpu_profile("l40s", tp=tp, min_vram_per_device_gb="8")
        (decision,) = decide([profile], replace(L40S, gpus=(full, *relatives)))
        assert (decision.refusal, decision.gpus, decision.fit) == (None, expected, Fit.SAME_CAPABILITY)


def test_gpus_are_counted_by_tensor_and_pipeline_parallelism_or_by_their_own_tag() -> None:
    for tags, needed in (({"tp": "2", "pp": "2"}, 4), ({"tp": "2", "number_of_gpus": "1"}, 2), ({"pp": "3"}, 3)):
        assert f"needs {needed} GPUs like" in why(gpu_profile("l40s", **tags), L40S)


@pytest.mark.parametrize(
    ("needed", "here", "runs"),
    [
        ("580", "580.65.06", True),
        ("580.65.06", "580.65.06", True),
        ("580.65.06", "580.65", False),
        ("580", "570.211", False),
        ("99", "570.211", True),
        ("580", None, True),  # NVML did not say: the proof at the start decides
        ("580", "unknown", True),
    ],
)
def test_an_older_driver_is_refused_and_both_versions_are_named(needed: str, here: str | None, runs: bool) -> None:
    profile = gpu_profile("l40s", min_driver_version=needed)
    reason = refusal(profile, replace(L40S, driver_version=here))
    words = f"needs NVIDIA driver {needed} or newer; this machine has {here}"
    assert reason == (None if runs else words)


@pytest.mark.parametrize("value", ["", "new", "580.", "580.65-beta", "²"])
def test_a_malformed_driver_version_is_refused(value: str) -> None:
    assert f"the tag min_driver_version is {value!r}" in why(gpu_profile("l40s", min_driver_version=value), L40S)


@pytest.mark.parametrize(
    ("profile", "words"),
    [
        (gpu_profile("l40s", trt_version="1.6.0.14"), "was compiled by tensorrt-rtx 1.6.0.14 and loads only there"),
        (
            cpu_profile("cpu", openvino_version="2026.3.0"),
            "openvino 2026.3.0 and loads only there; this image has 2026.4.1",
        ),
    ],
)
def test_an_engine_of_another_library_version_is_refused(profile: Profile, words: str) -> None:
    assert words in why(profile, L40S)


@pytest.mark.parametrize("precision", ["nvfp4", "", "FP16"])
def test_an_unknown_precision_is_refused(precision: str) -> None:
    assert "is not one this server knows (fp32, fp16, bf16, fp8, int8)" in why(generic(precision=precision), CPU)


@pytest.mark.parametrize("tag", ["tp", "pp", "number_of_gpus", "min_vram_per_device_gb"])
@pytest.mark.parametrize("value", ["two", "-1", "nan", "inf", "1e9", "", "²", "9" * 5000])
def test_a_malformed_number_is_refused_not_crashed_on(tag: str, value: str) -> None:
    assert f"the tag {tag} is {value!r}, not a number" in why(gpu_profile("l40s", **{tag: value}), L40S)


def test_all_reasons_are_given_at_once() -> None:
    arm = replace(CPU, cpu_arch="aarch64", runtimes={})
    reason = why(gpu_profile("l40s"), arm)
    assert "which is not in this image (it has none)" in reason
    assert "needs an x86_64 CPU" in reason
    assert "no GPU found" in reason


# ---- ranking --------------------------------------------------------------------------------------------------------


def test_refused_profiles_are_not_ranked() -> None:
    assert order(CPU, gpu_profile("l40s"), generic()) == ["generic__fp32"]


def test_exact_gpu_before_same_capability_before_cpu_before_generic() -> None:
    l40s, l4 = gpu_profile("l40s", precision="fp16"), gpu_profile("l4", "27b8:10de", precision="fp8")
    assert order(L40S, generic(), cpu_profile("cpu"), l4, l40s) == ["l40s", "l4", "cpu", "generic__fp32"]


def test_a_cpu_profile_that_needs_later_instructions_comes_first() -> None:
    amx = replace(CPU, cpu_features=CPU.cpu_features | {"amx_tile", "amx_bf16"})
    ranked = [cpu_profile("amx", "amx_bf16"), cpu_profile("bf16"), cpu_profile("avx2", "avx2", "fp32"), generic()]
    assert order(amx, *ranked) == ["amx", "bf16", "avx2", "generic__fp32"]
    assert order(CPU, *ranked) == ["bf16", "avx2", "generic__fp32"]


def test_bf16_is_chosen_on_a_cpu_that_has_it() -> None:
    ranked = [
        cpu_profile("p-fp32", precision="fp32"),
        cpu_profile("q-bf16"),
        cpu_profile("a", "avx2", "fp32"),
        generic(),
    ]
    assert order(CPU, *ranked)[0] == "q-bf16"


def test_tensorrt_before_openvino_before_onnx_runtime() -> None:
    onnx_on_gpu = generic("c", compute_capability="8.9", gpu_device="26b9")
    assert order(L40S, onnx_on_gpu, gpu_profile("b"), gpu_profile("z", backend="tensorrt", trt_version="11.0.0")) == [
        "z",
        "b",
        "c",
    ]
    assert order(CPU, generic("a"), cpu_profile("b", "")) == ["b", "a"]


def test_fewer_bits_then_float_before_int_then_fp16_before_bf16() -> None:
    ranked = [gpu_profile(f"{name}", precision=name) for name in ("fp32", "bf16", "int8", "fp16", "fp8")]
    assert order(L40S, *ranked) == ["fp8", "int8", "fp16", "bf16", "fp32"]


def test_latency_before_throughput() -> None:
    ranked = [gpu_profile("a", profile="throughput"), gpu_profile("b", profile="latency"), gpu_profile("c")]
    assert order(L40S, *ranked) == ["b", "c", "a"]


def test_higher_tensor_parallelism_first() -> None:
    four = replace(L40S, gpus=tuple(a_gpu(i) for i in range(4)))
    assert order(four, gpu_profile("a"), gpu_profile("b", tp="4"), gpu_profile("c", tp="2")) == ["b", "c", "a"]


def test_the_name_decides_between_equals_and_the_id_between_namesakes() -> None:
    assert order(L40S, gpu_profile("b"), gpu_profile("a"), gpu_profile("c")) == ["a", "b", "c"]
    twins = [gpu_profile("a", feat=letter) for letter in "xyz"]
    assert [p.id for p in rank(decide(twins, L40S))] == sorted(p.id for p in twins)


# ---- what a person asks for -----------------------------------------------------------------------------------------
