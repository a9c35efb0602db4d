"""The profiles that a person means: by id, name, prefix or precision, and what is said of names that fit none."""

from __future__ import annotations

from dataclasses import replace

import pytest

from serving.choice.select import Decision, decide
from serving.choice.wanted import by_precision, candidates, choose, choose_all
from serving.contract.manifest import profile_id
from serving.contract.profile import Machine, Precision, Profile
from serving.errors import NoProfile, WantedProfileError


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


CPU = Machine(
    cpu_arch="x86_64",
    cpu_features=frozenset({"avx2", "avx512f", "avx512_bf16"}),
    num_cpus=2,
    memory_bytes=16 * 10**9,
    runtimes={
        "onnxruntime": "1.31.1",
        "openvino": "2026.4.1-21234-releases/2026/4",
        "tensorrt-rtx": "1.7.1.116",
        "tensorrt": "11.0.0",
    },
    notes=("NVML: Driver Not Loaded",),
)


PROFILES = (
    gpu_profile("mini__l40s__fp16__tp1"),
    cpu_profile("mini__cpu-bf16__bf16__tp1"),
    generic("mini__cpu__fp32__tp1"),
)


def test_a_profile_is_chosen_by_id_by_name_and_by_prefix() -> None:
    for profile in PROFILES:
        for wanted in (profile.id, profile.name, profile.id[:8]):
            assert choose(PROFILES, wanted) == profile


def test_an_unknown_profile_lists_all_and_marks_the_near() -> None:
    with pytest.raises(WantedProfileError) as caught:
        choose(PROFILES, "mini__l40__fp16__tp1")
    message = str(caught.value)
    assert "No matching profile_id or profile description is found in manifest" in message
    assert all(profile.id in message for profile in PROFILES)
    assert f"{PROFILES[0].id} (mini__l40s__fp16__tp1)  <- did you mean this?" in message


def test_a_prefix_that_is_too_short_says_how_long_it_must_be() -> None:
    with pytest.raises(WantedProfileError, match="at least 8 digits") as caught:
        choose(PROFILES, PROFILES[1].id[:5])
    assert f"{PROFILES[1].name})  <- did you mean this?" in str(caught.value)


def test_an_ambiguous_prefix_lists_what_it_may_mean() -> None:
    twins = [replace(PROFILES[0], id="deadbeef" + "0" * 56), replace(PROFILES[1], id="deadbeef" + "1" * 56)]
    with pytest.raises(WantedProfileError, match="ambiguous; write more of the id") as caught:
        choose(twins, "deadbeef")
    assert all(twin.name in str(caught.value) for twin in twins)


def test_a_wanted_profile_is_the_only_candidate() -> None:
    decisions = decide(PROFILES, CPU)
    assert [p.name for p in candidates(decisions, None)] == ["mini__cpu-bf16__bf16__tp1", "mini__cpu__fp32__tp1"]
    assert candidates(decisions, "mini__cpu__fp32__tp1") == [PROFILES[2]]


def test_a_wanted_profile_that_cannot_run_here_is_refused_with_its_reason() -> None:
    with pytest.raises(WantedProfileError, match=r"cannot run here: .*no GPU found"):
        candidates(decide(PROFILES, CPU), "mini__l40s__fp16__tp1")


def test_a_machine_that_can_run_nothing_gets_every_reason() -> None:
    decisions: tuple[Decision, ...] = decide(PROFILES, replace(CPU, runtimes={}))
    with pytest.raises(NoProfile, match="No compatible profiles found") as caught:
        candidates(decisions, None)
    assert len(caught.value.problems) == len(PROFILES)
    assert all(d.refusal is not None and d.refusal in str(caught.value) for d in decisions)


def test_several_names_give_each_profile_once_in_the_order_named() -> None:
    assert choose_all(PROFILES, [PROFILES[2].name, PROFILES[0].id, PROFILES[2].id]) == [PROFILES[2], PROFILES[0]]


def test_all_names_that_fit_none_are_listed_at_once_in_nims_words() -> None:
    with pytest.raises(WantedProfileError) as caught:
        choose_all(PROFILES, [PROFILES[0].name, "nothing", "mini__l40__fp16__tp1"])
    message = str(caught.value)
    assert message.startswith("Not all of the provided profiles are supported.")
    assert "Unknown profiles provided: {'nothing', 'mini__l40__fp16__tp1'}" in message
    assert all(profile.id in message for profile in PROFILES)
    assert message.count("did you mean this?") >= 1


def test_profiles_of_the_wanted_precision_come_first_and_keep_their_order() -> None:
    assert by_precision(PROFILES, None) == list(PROFILES)
    preferred = by_precision(PROFILES, Precision.FP32)
    assert preferred == sorted(PROFILES, key=lambda profile: profile.precision is not Precision.FP32)
    assert preferred[0].precision is Precision.FP32
