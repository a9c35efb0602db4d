"""Decide which profiles a machine can run, why not the others, and which is best. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from enum import IntEnum

from serving.choice import gpu_match
from serving.contract.profile import Machine, Precision, Profile

BACKENDS = ("tensorrt", "tensorrt-rtx", "openvino", "onnxruntime")  # best first
GPU_BACKENDS = frozenset({"tensorrt", "tensorrt-rtx"})
GPU_TAGS = frozenset({"gpu", "gpu_device", "compute_capability"})
# An engine loads only with the library version that compiled it; the tag that names it.
VERSION_TAGS = {"tensorrt": "trt_version", "tensorrt-rtx": "trt_version", "openvino": "openvino_version"}
# Later instruction sets do more per cycle, so an engine that needs one was compiled for a better CPU.
CPU_GENERATION = {
    "avx2": 1,
    "avx512f": 2,
    "avx512_vnni": 3,
    "avx512_bf16": 4,
    "amx_tile": 5,
    "amx_int8": 5,
    "amx_bf16": 5,
}
# Fewer bits first, float before int of one width, fp16 before bf16: NIM's rule.
PRECISIONS = (Precision.FP8, Precision.INT8, Precision.FP16, Precision.BF16, Precision.FP32)


class Fit(IntEnum):
    """How closely a profile was made for this machine, best first."""

    EXACT_GPU = 0  # compiled for this GPU model
    SAME_CAPABILITY = 1  # for another model of the same compute capability: runs, tuned for other memory and SM counts
    CPU = 2  # for this CPU's instruction set
    GENERIC = 3  # for any machine


@dataclass(frozen=True, kw_only=True)
class Decision:
    """May this profile run here, and why not."""

    profile: Profile
    refusal: str | None  # None: it may
    low_memory: bool = False  # refused only because GPU memory is taken now: NIM lists these apart
    fit: Fit = Fit.GENERIC
    gpus: tuple[int, ...] = ()  # where it would run


def decide(profiles: Iterable[Profile], machine: Machine) -> tuple[Decision, ...]:
    """One decision per profile, in the same order."""
    return tuple(_decide(profile, machine) for profile in profiles)


def refusal(profile: Profile, machine: Machine) -> str | None:
    """Every reason why this profile cannot run here, joined by "; "; None: it can."""
    return _decide(profile, machine).refusal


def rank(decisions: Iterable[Decision]) -> list[Profile]:
    """The profiles that may run, best first: a total order, so the same whatever order the manifest has.

    Exact GPU > same compute capability > optimised CPU > generic; then later CPU instructions, TensorRT > OpenVINO >
    ONNX Runtime, precision, latency over throughput, higher tensor parallelism, name (docs.nvidia.com/nim "Model
    profiles", and our CPU rules; docs/selection.md gives the reasons).
    """
    return [d.profile for d in sorted((d for d in decisions if d.refusal is None), key=_rank_key)]


def _decide(profile: Profile, machine: Machine) -> Decision:
    unreadable = _tags_refusals(profile)
    reasons = [*unreadable, *_runtime_refusals(profile, machine), *_cpu_refusals(profile, machine)]
    if unreadable or not _needs_gpu(profile):
        return Decision(profile=profile, refusal="; ".join(reasons) or None, fit=_cpu_fit(profile))
    match = gpu_match.match(profile, machine)
    reasons += [reason for reason in (match.refusal, gpu_match.driver_refusal(profile, machine)) if reason]
    low_memory = bool(match.low_memory) and not reasons
    return Decision(
        profile=profile,
        refusal="; ".join([*reasons, *([match.low_memory] if match.low_memory else [])]) or None,
        low_memory=low_memory,
        fit=Fit.EXACT_GPU if match.exact else Fit.SAME_CAPABILITY,
        gpus=() if reasons else match.gpus,
    )


def _tags_refusals(profile: Profile) -> list[str]:
    """What the tags say that this server does not understand."""
    reasons = []
    precision = profile.tags.get("precision")
    if precision not in set(Precision):
        reasons.append(f"precision {precision!r} is not one this server knows ({', '.join(Precision)})")
    return [*reasons, *gpu_match.malformed(profile)]


def _runtime_refusals(profile: Profile, machine: Machine) -> list[str]:
    backend = profile.tags.get("backend", "")
    if backend not in BACKENDS:
        return [f"its backend {backend!r} is not one this server knows ({', '.join(BACKENDS)})"]
    here = machine.runtimes.get(backend)
    if here is None:
        has = ", ".join(f"{name} {version}" for name, version in sorted(machine.runtimes.items())) or "none"
        return [f"needs the runtime {backend}, which is not in this image (it has {has})"]
    needed = profile.tags.get(VERSION_TAGS.get(backend, ""))
    if needed and not _same_version(needed, here):
        return [f"was compiled by {backend} {needed} and loads only there; this image has {here}"]
    return []


def _same_version(needed: str, here: str) -> bool:
    """Compare what both give: "2026.4.1" agrees with "2026.4.1-21234-releases/2026/4", and "1.7" with "1.7.1"."""
    pairs = zip(needed.partition("-")[0].split("."), here.partition("-")[0].split("."), strict=False)
    return all(a == b for a, b in pairs)


def _cpu_refusals(profile: Profile, machine: Machine) -> list[str]:
    reasons = []
    arch = profile.tags.get("cpu_arch")
    if arch and arch != machine.cpu_arch:
        reasons.append(f"needs an {arch} CPU, this one is {machine.cpu_arch}")
    missing = [feature for feature in _features(profile) if feature not in machine.cpu_features]
    if missing:
        reasons.append(f"needs a CPU with {', '.join(missing)}, which this one lacks")
    return reasons


def _features(profile: Profile) -> list[str]:
    return [feature for part in profile.tags.get("cpu_features", "").split(",") if (feature := part.strip())]


def _cpu_fit(profile: Profile) -> Fit:
    return Fit.CPU if profile.tags.get("backend") == "openvino" or _features(profile) else Fit.GENERIC


def _needs_gpu(profile: Profile) -> bool:
    return profile.tags.get("backend") in GPU_BACKENDS or not GPU_TAGS.isdisjoint(profile.tags)


def _rank_key(decision: Decision) -> tuple[object, ...]:
    profile = decision.profile
    features = _features(profile)
    return (
        decision.fit,
        -max((CPU_GENERATION.get(feature, 0) for feature in features), default=0),
        -len(features),
        BACKENDS.index(profile.backend),
        PRECISIONS.index(profile.precision),
        {"latency": 0, "throughput": 2}.get(profile.tags.get("profile", ""), 1),
        -profile.tp,
        profile.name,
        profile.id,
    )
