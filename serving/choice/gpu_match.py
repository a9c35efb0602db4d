"""Find the GPUs of a machine that an engine was compiled for, or say why none will do. Pure."""

from __future__ import annotations

from dataclasses import dataclass

from serving.contract.profile import Machine, Profile

MIN_DRIVER = "min_driver_version"  # a tag of ours: "580" or "580.65.06"
GB = 10**9  # as in the tag min_vram_per_device_gb: a card sold as 24 GB reports about 22.5 GiB


@dataclass(frozen=True, kw_only=True)
class GpuMatch:
    """Where an engine would run. With a refusal, or memory that is taken, it has no gpus."""

    exact: bool = False  # every GPU is a model that the engine was tuned for, not merely of its compute capability
    gpus: tuple[int, ...] = ()
    refusal: str | None = None  # this machine will never do
    low_memory: str | None = None  # it will once GPU memory is freed


def match(profile: Profile, machine: Machine) -> GpuMatch:
    """Match a profile's gpu_device, compute_capability, tp, pp, number_of_gpus and min_vram_per_device_gb.

    An engine runs on every GPU of its compute capability; the very model comes first. PCI ids are compared whole:
    matching by name takes an L40S for an L4.
    """
    capability, devices = profile.tags.get("compute_capability"), _devices(profile)
    if not capability and not devices:
        return GpuMatch(refusal="names neither gpu_device nor compute_capability, so no GPU can be known to fit")
    if not machine.gpus:
        notes = [note for note in machine.notes if "NVML" in note or "GPU" in note]
        return GpuMatch(
            refusal=f"needs {_described(profile)}; no GPU found" + (f" ({'; '.join(notes)})" if notes else "")
        )
    exact = [g for g in machine.gpus if g.pci_device.lower() in devices and capability in (None, g.compute_capability)]
    related = [g for g in machine.gpus if g.compute_capability == capability and g not in exact]
    needed = _num_gpus(profile)
    usable = exact + related  # a relative with room serves while the very model is full
    if not usable:
        have = ", ".join(
            f"{g.name} [{g.pci_device}] of compute capability {g.compute_capability}" for g in machine.gpus
        )
        return GpuMatch(refusal=f"was compiled for {_described(profile)}; this machine has {have}")
    if len(usable) < needed:
        return GpuMatch(refusal=f"needs {needed} GPUs like {_described(profile)}; this machine has {len(usable)}")
    floor = min_vram_gb(profile) * GB
    large = [gpu for gpu in usable if gpu.memory_total_bytes >= floor]
    if len(large) < needed:
        most = max(gpu.memory_total_bytes for gpu in usable)
        each = f"needs {floor / GB:.1f} GB of memory on each of {needed} GPU(s)"
        return GpuMatch(refusal=f"{each}; the largest here has {most / GB:.1f} GB")
    # GPUs with room first, the very model before its relatives, the emptiest of those.
    order = sorted(large, key=lambda g: (g.memory_free_bytes < floor, g not in exact, -g.memory_free_bytes, g.index))
    chosen = order[:needed]
    is_exact = all(gpu in exact for gpu in chosen)
    if short := [gpu for gpu in chosen if gpu.memory_free_bytes < floor]:
        free = ", ".join(f"{gpu.memory_free_bytes / GB:.1f} GB on GPU {gpu.index}" for gpu in short)
        what = f"needs {floor / GB:.1f} GB of free GPU memory and finds {free}; stop what else runs there"
        return GpuMatch(exact=is_exact, low_memory=what)
    return GpuMatch(exact=is_exact, gpus=tuple(sorted(gpu.index for gpu in chosen)))


def _devices(profile: Profile) -> set[str]:
    """PCI device ids out of "26b9:10de,27b8:10de" or "26b9"; the vendor after the colon is always NVIDIA."""
    return {part.strip().partition(":")[0].lower() for part in profile.tags.get("gpu_device", "").split(",")} - {""}


def _described(profile: Profile) -> str:
    """ "an NVIDIA GPU such as l40s (compute capability 8.9)"."""
    tags = profile.tags
    name = tags.get("sku") or tags.get("gpu") or f"device {', '.join(sorted(_devices(profile)))}"
    capability = tags.get("compute_capability")
    return f"an NVIDIA GPU such as {name}" + (f" (compute capability {capability})" if capability else "")


def malformed(profile: Profile) -> list[str]:
    """What is wrong with the tags that count something. match and rank may read a profile only where this is empty."""
    wrong = []
    for tag in ("tp", "pp", "number_of_gpus", "min_vram_per_device_gb"):
        value = profile.tags.get(tag, "1")
        digits = value.replace(".", "", 1) if tag == "min_vram_per_device_gb" else value
        if not (digits.isascii() and digits.isdecimal() and len(digits) <= 12):
            wrong.append(f"the tag {tag} is {value!r}, not a number")
    if MIN_DRIVER in profile.tags and _version(profile.tags[MIN_DRIVER]) is None:
        wrong.append(f"the tag {MIN_DRIVER} is {profile.tags[MIN_DRIVER]!r}, not a version such as '580.65.06'")
    return wrong


def driver_refusal(profile: Profile, machine: Machine) -> str | None:
    """Why the driver here is too old; None where it is not, or where nobody knows: then the boot's proof decides."""
    needed = _version(profile.tags.get(MIN_DRIVER, ""))
    here = _version(machine.driver_version or "")
    if not machine.gpus or needed is None or here is None or here >= needed:
        return None
    return f"needs NVIDIA driver {profile.tags[MIN_DRIVER]} or newer; this machine has {machine.driver_version}"


def min_vram_gb(profile: Profile) -> float:
    """What each GPU must have, in GB of 10**9 bytes; 0: nothing is asked."""
    return _number(profile, "min_vram_per_device_gb", 0)


def _version(text: str) -> tuple[int, ...] | None:
    parts = text.split(".")
    is_version = all(part.isascii() and part.isdecimal() and len(part) <= 9 for part in parts)
    return tuple(int(part) for part in parts) if is_version else None


def _number(profile: Profile, tag: str, default: float) -> float:
    return float(profile.tags.get(tag, default))


def _num_gpus(profile: Profile) -> int:
    """NIM's count: the tensor-parallel times the pipeline-parallel degree, or more where a tag says so."""
    spans = _number(profile, "tp", 1) * _number(profile, "pp", 1)
    return max(1, int(spans), int(_number(profile, "number_of_gpus", 1)))
