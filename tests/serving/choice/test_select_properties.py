"""Selection over random manifests and machines: what must hold in every case, whatever the tags say."""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serving.choice.listing import listing_json, listing_text, startup_lines
from serving.choice.select import BACKENDS, Fit, decide, rank, refusal
from serving.choice.wanted import candidates, choose
from serving.contract.profile import Gpu, Machine, Profile
from serving.errors import NoProfile, WantedProfileError

GB = 10**9
DEVICES = {"26b9": "8.9", "27b8": "8.9", "2330": "9.0", "20b2": "8.0"}  # PCI id -> compute capability
FEATURES = ("avx2", "avx512f", "avx512_bf16", "amx_bf16")
VERSIONS = {"tensorrt": "11.4.0", "tensorrt-rtx": "1.7.1.116", "openvino": "2026.4.1", "onnxruntime": "1.31.1"}
SOME_NUMBER = st.sampled_from(["1", "2", "4", "0", "two", "", "-1", "9" * 20])
WILD = st.fixed_dictionaries(  # what a manifest may hold that nobody checked
    {
        "backend": st.sampled_from([*BACKENDS, "triton", ""]),
        "precision": st.sampled_from(["fp8", "int8", "fp16", "fp4"]),
    },
    optional={
        "gpu_device": st.sampled_from(["26b9:10de", "27b8", "2330:10de,20b2:10de", ":10de", ","]),
        "compute_capability": st.sampled_from(["8.9", "9.0", "8.0", ""]),
        "gpu": st.sampled_from(["l40s", "h100"]),
        "tp": SOME_NUMBER,
        "pp": SOME_NUMBER,
        "number_of_gpus": SOME_NUMBER,
        "min_vram_per_device_gb": st.sampled_from(["8", "24.0", "0", "nan", "1e9", ".", "8."]),
        "min_driver_version": st.sampled_from(["580", "570.10", "new", ""]),
        "trt_version": st.sampled_from(["1.7.1.116", "11.4", "9"]),
        "openvino_version": st.sampled_from(["2026.4.1", "2025.0"]),
        "cpu_arch": st.sampled_from(["x86_64", "aarch64"]),
        "cpu_features": st.sampled_from(["avx2", "avx512_bf16", "avx2, amx_bf16", ",", "sve"]),
        "profile": st.sampled_from(["latency", "throughput", "balanced"]),
        "feat_lora": st.just("true"),
    },
)
PRECISION = st.sampled_from(["fp8", "int8", "fp16", "bf16", "fp32"])
ON_GPU = st.builds(  # what the factory writes
    lambda device, more, **tags: {
        **tags,
        "backend": "tensorrt-rtx",
        "gpu_device": f"{device}:10de",
        "compute_capability": DEVICES[device],
        "trt_version": VERSIONS["tensorrt-rtx"],
        **more,
    },
    st.sampled_from(sorted(DEVICES)),
    st.fixed_dictionaries(
        {},
        optional={
            "tp": st.sampled_from(["1", "2"]),
            "min_vram_per_device_gb": st.sampled_from(["8", "24"]),
            "profile": st.sampled_from(["latency", "throughput"]),
            "min_driver_version": st.just("580"),
        },
    ),
    precision=PRECISION,
)
ON_CPU = st.fixed_dictionaries(
    {"backend": st.sampled_from(["openvino", "onnxruntime"]), "precision": PRECISION},
    optional={"cpu_features": st.sampled_from([*FEATURES, "avx2,avx512_bf16"])},
)
TAGS = st.one_of(ON_GPU, ON_GPU, ON_CPU, WILD)
GPUS = st.lists(
    st.builds(
        lambda device, total, free: (device, total, total * free),
        st.sampled_from(sorted(DEVICES)),
        st.sampled_from([8, 24, 48]),
        st.sampled_from([0.0, 0.25, 1.0, 1.0]),
    ),
    max_size=4,
)
MACHINES = st.builds(
    lambda arch, features, gpus, driver, runtimes: Machine(
        cpu_arch=arch,
        cpu_features=features,
        num_cpus=2,
        memory_bytes=16 * GB,
        gpus=tuple(a_gpu(index, *gpu) for index, gpu in enumerate(gpus)),
        driver_version=driver,
        runtimes={name: VERSIONS[name] for name in sorted(runtimes)},
    ),
    st.sampled_from(["x86_64", "aarch64"]),
    st.frozensets(st.sampled_from(FEATURES)),
    GPUS,
    st.sampled_from([None, "580.65.06", "560.1", "?"]),
    st.one_of(st.just(frozenset(VERSIONS)), st.frozensets(st.sampled_from(sorted(VERSIONS)))),
)


def a_gpu(index: int, device: str, total: int, free: float) -> Gpu:
    return Gpu(
        index=index,
        name=f"NVIDIA {device}",
        pci_device=device,
        compute_capability=DEVICES[device],
        memory_total_bytes=total * GB,
        memory_free_bytes=int(free * GB),
    )


def profiles_of(tags: list[dict[str, str]]) -> tuple[Profile, ...]:
    """Names repeat, as they may in a manifest that nobody checked; ids do not."""
    return tuple(
        Profile(id=f"{n:064x}", name=f"row{n % 3}", tags=some, files=(), proof_min_cosine=0.98)
        for n, some in enumerate(tags)
    )


# Rows of the same tags are common, so that only the name or the id can tell them apart.
MANIFESTS = st.lists(TAGS, min_size=1, max_size=5).flatmap(
    lambda some: st.lists(st.sampled_from(some), max_size=8).map(profiles_of)
)


@given(MANIFESTS, MACHINES)
def test_decisions_cover_every_profile_in_order_and_each_refusal_has_its_reason(
    profiles: tuple[Profile, ...], machine: Machine
) -> None:
    decisions = decide(profiles, machine)
    assert tuple(decision.profile for decision in decisions) == profiles
    for decision in decisions:
        assert decision.refusal is None or decision.refusal.strip("; ")
        assert not (decision.low_memory and decision.refusal is None)
        assert decision.refusal == refusal(decision.profile, machine)
        here = {gpu.index for gpu in machine.gpus}
        assert set(decision.gpus) <= here
        assert len(set(decision.gpus)) == len(decision.gpus)
        if decision.refusal is not None:
            assert decision.gpus == ()


@given(MANIFESTS, MACHINES)
def test_what_is_ranked_is_exactly_what_is_not_refused(profiles: tuple[Profile, ...], machine: Machine) -> None:
    decisions = decide(profiles, machine)
    assert Counter(p.id for p in rank(decisions)) == Counter(d.profile.id for d in decisions if d.refusal is None)


@given(MANIFESTS, MACHINES, st.randoms(use_true_random=False))
def test_the_order_is_total_it_depends_on_no_other_profile_and_not_on_the_manifests_order(
    profiles: tuple[Profile, ...], machine: Machine, shuffler: random.Random
) -> None:
    ranked = rank(decide(profiles, machine))
    shuffled = list(profiles)
    shuffler.shuffle(shuffled)
    assert rank(decide(shuffled, machine)) == ranked
    some = shuffled[: len(shuffled) // 2]
    kept = {profile.id for profile in some}
    assert rank(decide(some, machine)) == [profile for profile in ranked if profile.id in kept]


@given(MANIFESTS, MACHINES)
def test_the_choice_is_never_a_refused_profile(profiles: tuple[Profile, ...], machine: Machine) -> None:
    decisions = decide(profiles, machine)
    refused = {decision.profile.id for decision in decisions if decision.refusal is not None}
    if len(refused) == len(profiles):
        with pytest.raises(NoProfile) as caught:
            candidates(decisions, None)
        assert len(caught.value.problems) == len(profiles)
    else:
        assert not refused & {profile.id for profile in candidates(decisions, None)}
    for decision in decisions:
        if decision.refusal is None:
            assert candidates(decisions, decision.profile.id) == [decision.profile]
        else:
            with pytest.raises(WantedProfileError) as told:
                candidates(decisions, decision.profile.id)
            assert decision.refusal in str(told.value)


@given(MANIFESTS.filter(len), st.text(max_size=70))
def test_a_name_that_fits_no_profile_lists_them_all(profiles: tuple[Profile, ...], wanted: str) -> None:
    known = {text for profile in profiles for text in (profile.id, profile.name)}
    if wanted not in known and not any(text.startswith(wanted) for text in known):
        with pytest.raises(WantedProfileError) as told:
            choose(profiles, wanted)
        assert all(profile.id in str(told.value) for profile in profiles)


@given(st.one_of(ON_GPU, TAGS), MACHINES, st.sampled_from(sorted(DEVICES)), st.sampled_from(FEATURES))
def test_more_hardware_never_refuses_what_ran_before(
    tags: dict[str, str], machine: Machine, device: str, feature: str
) -> None:
    (profile,) = profiles_of([tags])
    if refusal(profile, machine) is None:
        full = a_gpu(len(machine.gpus), device, 24, 0)  # a GPU of which everything is taken
        empty = a_gpu(len(machine.gpus), device, 48, 48)
        larger = [replace(machine, gpus=(*machine.gpus, gpu)) for gpu in (full, empty)]
        larger.append(replace(machine, cpu_features=machine.cpu_features | {feature}))
        larger.append(replace(machine, driver_version="999.1"))
        larger.append(replace(machine, runtimes=VERSIONS))
        assert [refusal(profile, more) for more in larger] == [None] * len(larger)


@given(MANIFESTS, MACHINES)
def test_an_exact_match_is_never_ranked_below_another_gpus_engine(
    profiles: tuple[Profile, ...], machine: Machine
) -> None:
    decisions = {decision.profile.id: decision for decision in decide(profiles, machine)}
    fits = [decisions[profile.id].fit for profile in rank(decisions.values())]
    assert fits == sorted(fits)
    for decision in decisions.values():
        if decision.refusal is None and decision.fit is Fit.EXACT_GPU:
            devices = decision.profile.tags["gpu_device"].lower()
            assert all(gpu.pci_device in devices for gpu in machine.gpus if gpu.index in decision.gpus)


@given(MANIFESTS, MACHINES)
def test_the_text_and_the_json_list_every_profile_once_with_the_same_reason(
    profiles: tuple[Profile, ...], machine: Machine
) -> None:
    decisions = decide(profiles, machine)
    text = listing_text(decisions, machine).partition("MODEL PROFILES")[2]
    listed = {entry["id"]: entry for entry in listing_json(decisions, machine)["profiles"]}
    assert set(listed) == {profile.id for profile in profiles}
    assert len(listed) == len(profiles)
    for decision in decisions:
        (line,) = [line for line in text.splitlines() if decision.profile.id in line]
        entry = listed[decision.profile.id]
        assert entry["reason"] == decision.refusal
        assert line.endswith(f": {decision.refusal}") if decision.refusal else ": " not in line.partition("[")[0]
        assert entry["status"] == (
            "runnable" if decision.refusal is None else "low-memory" if decision.low_memory else "incompatible"
        )


@given(MANIFESTS, MACHINES)
def test_the_start_tells_every_decision(profiles: tuple[Profile, ...], machine: Machine) -> None:
    decisions = decide(profiles, machine)
    ranked = rank(decisions)
    if ranked:
        lines = startup_lines(decisions, ranked[0])
        assert f"Detected {len(ranked)} compatible profile(s)." in lines
        for decision in decisions:
            kind = "Refused" if decision.refusal else "Valid"
            assert sum(line.startswith(f"{kind} profile: {decision.profile.id} ") for line in lines) == 1
