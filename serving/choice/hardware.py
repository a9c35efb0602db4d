"""What this machine has: CPU features, memory, GPUs and runtimes. Never fails; what it cannot see it notes."""

from __future__ import annotations

import os
import platform
from contextlib import suppress
from dataclasses import replace
from importlib import metadata
from pathlib import Path
from typing import Any

from serving.contract.profile import Gpu, Machine

# backend -> its distribution. Versions come from the metadata: importing any of these takes a second or needs a driver.
RUNTIMES = {
    "onnxruntime": "onnxruntime",
    "openvino": "openvino",
    "tensorrt-rtx": "tensorrt-rtx-cu13-bindings",
    "tensorrt": "tensorrt",
}
ARCHITECTURES = {"amd64": "x86_64", "x64": "x86_64", "arm64": "aarch64"}  # other systems' names -> Linux's


def detect(
    *,
    cpu_only: bool = False,
    proc: Path = Path("/proc"),
    cgroup: Path = Path("/sys/fs/cgroup"),
    arch: str | None = None,
    affinity: int | None = None,
    visible_gpus: str | None = None,
) -> Machine:
    """Look at the machine.

    cpu_only: do not look for GPUs (NIM_CPU_ONLY). affinity: CPUs this process may run on; None asks the system.
    visible_gpus: the value of CUDA_VISIBLE_DEVICES.
    """
    notes: list[str] = []
    memory = _memory_bytes(proc, cgroup)
    gpus: tuple[Gpu, ...] = ()
    driver: str | None = None
    if cpu_only:
        notes.append("NIM_CPU_ONLY is set: GPUs were not looked for")
    else:
        gpus, driver, gpu_notes = _gpus(memory)
        gpus = _visible(gpus, visible_gpus, gpu_notes)
        notes += gpu_notes
    machine_arch = arch or platform.machine()
    return Machine(
        cpu_arch=ARCHITECTURES.get(machine_arch.lower(), machine_arch),
        cpu_features=_cpu_features(proc),
        num_cpus=_num_cpus(proc, cgroup, affinity),
        memory_bytes=memory,
        gpus=gpus,
        driver_version=driver,
        runtimes={name: version for name, package in RUNTIMES.items() if (version := _version(package))},
        notes=tuple(notes),
    )


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


def _cpu_features(proc: Path) -> frozenset[str]:
    """The flags that every core has: a thread may run on any of them, and cores differ on hybrid CPUs."""
    cores = [
        frozenset(value.split())
        for line in _text(proc / "cpuinfo").splitlines()
        for key, _, value in [line.partition(":")]
        if key.strip() in ("flags", "Features")  # x86, Arm
    ]
    return frozenset.intersection(*cores) if cores else frozenset()


def _memory_bytes(proc: Path, cgroup: Path) -> int:
    total = 0
    for line in _text(proc / "meminfo").splitlines():
        name, _, value = line.partition(":")
        if name == "MemTotal" and value.split()[:1]:
            total = int(value.split()[0]) * 1024  # the file says kB and means KiB
    limits = [
        int(text)
        for folder in _cgroups(proc, cgroup, "memory")
        for name in ("memory.max", "memory.limit_in_bytes")  # cgroup v2, v1; "max" is no limit
        if (text := _text(folder / name).strip()).isdecimal()
    ]
    return min([total, *limits]) if total else min(limits, default=0)


def _num_cpus(proc: Path, cgroup: Path, affinity: int | None) -> int:
    if affinity is None:
        affinity = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    shares = [float(affinity)]
    for folder in _cgroups(proc, cgroup, "cpu"):
        quota, period = (_text(folder / "cpu.max").split() or ["max", "100000"])[:2]
        if quota == "max":
            quota = _text(folder / "cpu.cfs_quota_us").strip()
            period = _text(folder / "cpu.cfs_period_us").strip()
        if quota.isdecimal() and period.isdecimal() and int(period):  # v1 writes -1 for no limit
            shares.append(int(quota) / int(period))
    return max(1, int(min(shares)))  # a thread more than the quota pays for would stall all of them


def _cgroups(proc: Path, cgroup: Path, controller: str) -> list[Path]:
    """The folders of this process's cgroup and its parents: every one of them limits.

    /proc/self/cgroup has lines "0::/path" (v2) and "4:memory:/path" (v1, mounted at memory/). In a container the path
    may be the host's and absent here, so the parents up to the mount are asked as well.
    """
    folders: list[Path] = []
    for line in _text(proc / "self" / "cgroup").splitlines():
        number, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if number == "0" and not controllers:
            mount = cgroup
        elif controller in controllers.split(","):
            mounts = [cgroup / controllers, cgroup / controller]
            mount = next((m for m in mounts if m.is_dir()), mounts[-1])
        else:
            continue
        parts = [part for part in path.split("/") if part not in ("", "..")]
        folders += [mount.joinpath(*parts[:depth]) for depth in range(len(parts), -1, -1)]
    return folders or [cgroup]


def _gpus(system_memory: int) -> tuple[tuple[Gpu, ...], str | None, list[str]]:
    """GPUs in PCI order, the driver's version, and notes."""
    try:
        import pynvml as nvml
    except ImportError:
        return (), None, ["NVML: nvidia-ml-py is not installed in this image"]
    try:
        nvml.nvmlInit()
    except nvml.NVMLError as error:
        return (), None, [f"NVML: {error}; on a machine with a GPU, start the container with its driver (--gpus all)"]
    notes: list[str] = []
    gpus: list[Gpu] = []
    driver: str | None = None
    try:
        try:
            driver = str(nvml.nvmlSystemGetDriverVersion())
        except nvml.NVMLError as error:  # the GPUs may still answer
            notes.append(f"NVML: the driver's version is not known: {error}")
        for index in range(nvml.nvmlDeviceGetCount()):
            try:
                gpus.append(_gpu(nvml, index, system_memory, notes))
            except nvml.NVMLError as error:  # one lost GPU must not hide the others
                notes.append(f"NVML: GPU {index} cannot be used: {error}")
    except nvml.NVMLError as error:
        notes.append(f"NVML: the GPUs cannot be counted: {error}")
    finally:
        with suppress(nvml.NVMLError):
            nvml.nvmlShutdown()
    if not gpus and not notes:
        notes.append("NVML: the driver is loaded and reports no GPU")
    return tuple(gpus), driver, notes


def _gpu(nvml: Any, index: int, system_memory: int, notes: list[str]) -> Gpu:
    """One GPU; raises NVMLError where it fails, as one that is lost meanwhile does. Its notes are given when it is."""
    told: list[str] = []
    handle = nvml.nvmlDeviceGetHandleByIndex(index)
    major, minor = nvml.nvmlDeviceGetCudaComputeCapability(handle)
    try:
        memory = nvml.nvmlDeviceGetMemoryInfo(handle)
        total, free = int(memory.total), int(memory.free)
    except nvml.NVMLError_NotSupported:  # GB10 and Jetson share the system's memory and report none of their own
        total = free = system_memory
        told.append(f"GPU {index} shares the system's memory")
    try:
        utilization = int(nvml.nvmlDeviceGetUtilizationRates(handle).gpu)
    except nvml.NVMLError:  # not reported by every GPU, and only shown to people
        utilization = 0
    try:
        if nvml.nvmlDeviceGetMigMode(handle)[0] == nvml.NVML_DEVICE_MIG_ENABLE:
            told.append(f"GPU {index} is in MIG mode; the memory shown is the whole GPU's, not this instance's")
    except nvml.NVMLError:  # GPUs without MIG answer "not supported"
        pass
    gpu = Gpu(
        index=index,
        name=str(nvml.nvmlDeviceGetName(handle)),
        pci_device=f"{nvml.nvmlDeviceGetPciInfo(handle).pciDeviceId >> 16:04x}",  # the lower half is the vendor
        compute_capability=f"{major}.{minor}",
        memory_total_bytes=total,
        memory_free_bytes=free,
        utilization_percent=utilization,
    )
    notes += told
    return gpu


def _visible(gpus: tuple[Gpu, ...], visible: str | None, notes: list[str]) -> tuple[Gpu, ...]:
    """The GPUs that CUDA will see, in the order it will number them (with CUDA_DEVICE_ORDER=PCI_BUS_ID).

    https://docs.nvidia.com/cuda/cuda-programming-guide/05-appendices/environment-variables.html
    """
    if visible is None or not gpus:
        return gpus
    chosen: list[Gpu] = []
    for part in (part.strip() for part in visible.split(",")):
        if not part.isdecimal() or int(part) >= len(gpus):
            if part.startswith(("GPU-", "MIG-")):
                notes.append(
                    f"CUDA_VISIBLE_DEVICES={visible!r} names GPUs by UUID; all {len(gpus)} are listed, use indices"
                )
                return gpus
            break  # CUDA ignores an invalid index and everything after it
        chosen.append(gpus[int(part)])
    if len(chosen) < len(gpus):
        notes.append(f"CUDA_VISIBLE_DEVICES={visible!r} hides {len(gpus) - len(chosen)} of {len(gpus)} GPUs")
    return tuple(replace(gpu, index=index) for index, gpu in enumerate(chosen))
