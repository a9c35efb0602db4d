"""What this machine has: CPU features, memory, runtimes and GPUs. Never fails; what it cannot see it notes."""

from __future__ import annotations

import os
import platform
from importlib import metadata
from pathlib import Path

from serving.choice import nvml
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
        gpus, driver, gpu_notes = nvml.detect(memory)
        gpus = nvml.visible(gpus, visible_gpus, gpu_notes)
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
