"""Say what was decided, in the words that NIM users search for: the profile list, its JSON, the boot's log lines."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from serving.choice.gpu_match import malformed, min_vram_gb
from serving.choice.select import Decision, rank
from serving.contract.profile import Gpu, Machine, Profile

FREE_SHARE = 0.9  # a GPU counts as free while this share of its memory is
_TELLING_FEATURES = ("avx2", "avx512f", "avx512_vnni", "avx512_bf16", "amx_bf16", "amx_int8", "asimd", "bf16", "sve")


def listing_text(decisions: Sequence[Decision], machine: Machine) -> str:
    """What list-model-profiles prints; each section is NIM's to the letter, reasons are ours."""
    free = [gpu for gpu in machine.gpus if _is_free(gpu)]
    busy = [gpu for gpu in machine.gpus if not _is_free(gpu)]
    features = [feature for feature in _TELLING_FEATURES if feature in machine.cpu_features]
    runtimes = [f"{name} {version}" for name, version in sorted(machine.runtimes.items())]
    runnable = [f"  - {_label(profile)}{_needs(profile)}" for profile in rank(decisions)]
    low_memory = [_refused(decision) for decision in decisions if decision.low_memory]
    incompatible = [_refused(decision) for decision in decisions if decision.refusal and not decision.low_memory]
    return "\n".join(
        [
            "SYSTEM INFO",
            *_section("- Free GPUs:", [_gpu_line(gpu) for gpu in free]),
            *_section("- Non-free GPUs:", [_gpu_line(gpu) for gpu in busy]),
            f"- CPU: {machine.cpu_arch}, {machine.num_cpus} usable, {machine.memory_bytes / 2**30:.1f} GiB of memory",
            f"- CPU features: {' '.join(features) or '<None>'}",
            f"- Runtimes: {', '.join(runtimes) or '<None>'}",
            *(f"- Note: {note}" for note in machine.notes),
            "MODEL PROFILES",
            *_section("- Compatible with system and runnable:", runnable),
            *_section("- Compatible with system but not runnable due to low GPU free memory:", low_memory),
            # Nothing of ours is compiled where it serves; scripts that look for the section find it empty.
            *_section("- Compilable to TRT-LLM using just-in-time compilation of HF models to TRTLLM engines:", []),
            *_section("- Incompatible with system:", incompatible),
        ]
    )


def listing_json(decisions: Sequence[Decision], machine: Machine) -> dict[str, Any]:
    """The same facts for programs; profiles that may run come first, best first, with their rank."""
    order = {profile.id: place for place, profile in enumerate(rank(decisions), start=1)}
    return {
        "system": {
            "cpu_arch": machine.cpu_arch,
            "cpu_features": sorted(machine.cpu_features),
            "num_cpus": machine.num_cpus,
            "memory_bytes": machine.memory_bytes,
            "driver_version": machine.driver_version,
            "gpus": [
                {
                    "index": gpu.index,
                    "name": gpu.name,
                    "pci_device": gpu.pci_device,
                    "compute_capability": gpu.compute_capability,
                    "memory_total_bytes": gpu.memory_total_bytes,
                    "memory_free_bytes": gpu.memory_free_bytes,
                    "utilization_percent": gpu.utilization_percent,
                }
                for gpu in machine.gpus
            ],
            "runtimes": dict(sorted(machine.runtimes.items())),
            "notes": list(machine.notes),
        },
        "profiles": [
            {
                "id": decision.profile.id,
                "name": decision.profile.name,
                "status": _status(decision),
                "reason": decision.refusal,
                "rank": order.get(decision.profile.id),
                "gpus": list(decision.gpus),
                "tags": dict(sorted(decision.profile.tags.items())),
            }
            for decision in sorted(decisions, key=lambda d: (order.get(d.profile.id, len(order) + 1), d.profile.name))
        ],
    }


def startup_lines(decisions: Sequence[Decision], chosen: Profile) -> list[str]:
    """The boot's log lines, without prefix: every decision with its reason, then the choice and its tags."""
    by_id = {decision.profile.id: decision for decision in decisions}
    runnable = [by_id[profile.id] for profile in rank(decisions)]
    return [
        "MODEL PROFILES",
        f"Detected {len(runnable)} compatible profile(s).",
        *(f"Valid profile: {_label(d.profile)}{_on_gpus(d)}" for d in runnable),
        *(f"Refused profile: {_label(d.profile)}: {d.refusal}" for d in decisions if d.refusal),
        f"Selected profile: {_label(chosen)}",
        *(f"Profile metadata: {key}: {value}" for key, value in sorted(chosen.tags.items())),
    ]


def _section(title: str, lines: Sequence[str]) -> list[str]:
    return [title, *lines] if lines else [f"{title} <None>"]


def _label(profile: Profile) -> str:
    return f"{profile.id} ({profile.name})"


def _refused(decision: Decision) -> str:
    return f"  - {_label(decision.profile)}{_needs(decision.profile)}: {decision.refusal}"


def _needs(profile: Profile) -> str:
    """NIM's hint, where a profile asks for GPU memory: " [requires >=24 GB/gpu]"."""
    if malformed(profile) or not (floor := min_vram_gb(profile)):
        return ""
    return f" [requires >={floor:g} GB/gpu]"


def _status(decision: Decision) -> str:
    if decision.refusal is None:
        return "runnable"
    return "low-memory" if decision.low_memory else "incompatible"


def _on_gpus(decision: Decision) -> str:
    return f" on GPUs [{', '.join(map(str, decision.gpus))}]" if decision.gpus else ""


def _is_free(gpu: Gpu) -> bool:
    return gpu.memory_free_bytes >= FREE_SHARE * gpu.memory_total_bytes


def _gpu_line(gpu: Gpu) -> str:
    name = f"{gpu.name} ({gpu.name.removeprefix('NVIDIA ')})"
    return f"  -  [{gpu.pci_device}:10de] ({gpu.index}) {name} [current utilization: {gpu.utilization_percent}%]"
