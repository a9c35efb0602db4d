from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from serving.hardware import RUNTIMES, detect
from serving.profile import Machine

GIB = 2**30


@pytest.fixture
def roots(tmp_path: Path) -> tuple[Path, Path]:
    """A machine of 2 cores and 16 GiB without limits: (proc, cgroup)."""
    proc, cgroup = tmp_path / "proc", tmp_path / "cgroup"
    write(proc / "cpuinfo", "processor : 0\nflags\t\t: fpu avx2 avx512_bf16\n\nprocessor : 1\nflags\t\t: fpu avx2\n")
    write(proc / "meminfo", f"MemTotal:       {16 * GIB // 1024} kB\nMemFree:  1 kB\n")
    cgroup.mkdir()
    return proc, cgroup


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def look(roots: tuple[Path, Path], **kwargs: Any) -> Machine:
    return detect(proc=roots[0], cgroup=roots[1], **{"cpu_only": True, "arch": "x86_64", "affinity": 8, **kwargs})


class FakeNvml(ModuleType):
    """NVML's functions over a list of GPUs: the driver is the one part that is not on every test machine."""

    NVML_DEVICE_MIG_ENABLE = 1

    class NVMLError(Exception):
        pass

    def __init__(self, gpus: list[dict[str, Any]], init_error: str = "") -> None:
        super().__init__("pynvml")
        self.gpus, self.init_error, self.shut = gpus, init_error, 0

    def nvmlInit(self) -> None:
        if self.init_error:
            raise self.NVMLError(self.init_error)

    def nvmlShutdown(self) -> None:
        self.shut += 1

    def nvmlSystemGetDriverVersion(self) -> str:
        return "580.65.06"

    def nvmlDeviceGetCount(self) -> int:
        return len(self.gpus)

    def nvmlDeviceGetHandleByIndex(self, index: int) -> dict[str, Any]:
        if self.gpus[index].get("lost"):
            raise self.NVMLError("GPU is lost")
        return self.gpus[index]

    def nvmlDeviceGetCudaComputeCapability(self, gpu: dict[str, Any]) -> tuple[int, int]:
        return gpu["cc"]

    def nvmlDeviceGetMemoryInfo(self, gpu: dict[str, Any]) -> SimpleNamespace:
        if "memory" not in gpu:
            raise self.NVMLError("Not Supported")
        total, free = gpu["memory"]
        return SimpleNamespace(total=total, free=free)

    def nvmlDeviceGetUtilizationRates(self, gpu: dict[str, Any]) -> SimpleNamespace:
        return SimpleNamespace(gpu=gpu.get("busy", 0))

    def nvmlDeviceGetMigMode(self, gpu: dict[str, Any]) -> tuple[int, int]:
        if "mig" not in gpu:
            raise self.NVMLError("Not Supported")
        return gpu["mig"], 0

    def nvmlDeviceGetName(self, gpu: dict[str, Any]) -> str:
        return gpu["name"]

    def nvmlDeviceGetPciInfo(self, gpu: dict[str, Any]) -> SimpleNamespace:
        return SimpleNamespace(pciDeviceId=(gpu["device"] << 16) | 0x10DE)


L40S = {"name": "NVIDIA L40S", "device": 0x26B9, "cc": (8, 9), "memory": (48 * GIB, 47 * GIB), "busy": 3}
H100 = {"name": "NVIDIA H100 80GB HBM3", "device": 0x2330, "cc": (9, 0), "memory": (80 * GIB, 80 * GIB), "mig": 1}
GB10 = {"name": "NVIDIA GB10", "device": 0x2E12, "cc": (12, 1)}
LOST = {"lost": True}


def test_only_flags_that_every_core_has_count(roots: tuple[Path, Path]) -> None:
    assert look(roots).cpu_features == {"fpu", "avx2"}


def test_arm_features_are_read_from_their_own_line(roots: tuple[Path, Path]) -> None:
    write(roots[0] / "cpuinfo", "processor\t: 0\nFeatures\t: fp asimd bf16\n")
    machine = look(roots, arch="arm64")
    assert (machine.cpu_arch, machine.cpu_features) == ("aarch64", {"fp", "asimd", "bf16"})


def test_without_limits_all_memory_and_cpus_count(roots: tuple[Path, Path]) -> None:
    machine = look(roots)
    assert (machine.memory_bytes, machine.num_cpus) == (16 * GIB, 8)


def test_cgroup_v2_limits_of_the_group_and_its_parents_apply(roots: tuple[Path, Path]) -> None:
    proc, cgroup = roots
    write(proc / "self" / "cgroup", "0::/kube/pod\n")
    write(cgroup / "kube" / "memory.max", str(4 * GIB))
    write(cgroup / "kube" / "pod" / "memory.max", "max\n")
    write(cgroup / "kube" / "pod" / "cpu.max", "350000 100000\n")
    write(cgroup / "cpu.max", "max 100000\n")
    machine = look(roots)
    assert (machine.memory_bytes, machine.num_cpus) == (4 * GIB, 3)


def test_cgroup_v1_limits_apply_though_the_hosts_path_is_not_visible(roots: tuple[Path, Path]) -> None:
    proc, cgroup = roots
    write(proc / "self" / "cgroup", "4:memory:/docker/abc\n2:cpu,cpuacct:/docker/abc\n0::/\n")
    write(cgroup / "memory" / "memory.limit_in_bytes", str(2 * GIB))
    write(cgroup / "cpu,cpuacct" / "cpu.cfs_quota_us", "50000")
    write(cgroup / "cpu,cpuacct" / "cpu.cfs_period_us", "100000")
    machine = look(roots)
    assert (machine.memory_bytes, machine.num_cpus) == (2 * GIB, 1)


def test_cgroup_v1_without_a_limit_limits_nothing(roots: tuple[Path, Path]) -> None:
    proc, cgroup = roots
    write(proc / "self" / "cgroup", "4:memory:/\n1:cpu:/\n")
    write(cgroup / "memory" / "memory.limit_in_bytes", "9223372036854771712")
    write(cgroup / "cpu" / "cpu.cfs_quota_us", "-1")
    write(cgroup / "cpu" / "cpu.cfs_period_us", "100000")
    machine = look(roots)
    assert (machine.memory_bytes, machine.num_cpus) == (16 * GIB, 8)


def test_a_machine_without_proc_is_described_not_crashed_on(tmp_path: Path) -> None:
    machine = detect(proc=tmp_path / "none", cgroup=tmp_path / "none", affinity=1, cpu_only=True)
    assert (machine.cpu_features, machine.memory_bytes, machine.num_cpus) == (frozenset(), 0, 1)


def test_gpus_are_read_from_nvml(roots: tuple[Path, Path]) -> None:
    nvml = FakeNvml([L40S, H100])
    machine = look(roots, cpu_only=False, nvml=nvml)
    l40s, h100 = machine.gpus
    assert (l40s.index, l40s.name, l40s.pci_device, l40s.compute_capability) == (0, "NVIDIA L40S", "26b9", "8.9")
    assert (l40s.memory_total_bytes, l40s.memory_free_bytes, l40s.utilization_percent) == (48 * GIB, 47 * GIB, 3)
    assert (h100.index, h100.pci_device, h100.compute_capability) == (1, "2330", "9.0")
    assert machine.driver_version == "580.65.06"
    assert nvml.shut == 1
    assert "MIG mode" in " ".join(machine.notes)


def test_cpu_only_does_not_look_for_gpus(roots: tuple[Path, Path]) -> None:
    machine = look(roots, cpu_only=True, nvml=FakeNvml([L40S]))
    assert machine.gpus == ()
    assert machine.notes == ("NIM_CPU_ONLY is set: GPUs were not looked for",)


def test_a_missing_driver_is_a_note_with_a_remedy(roots: tuple[Path, Path]) -> None:
    machine = look(roots, cpu_only=False, nvml=FakeNvml([], init_error="Driver Not Loaded"))
    assert machine.gpus == ()
    assert "NVML: Driver Not Loaded" in machine.notes[0]
    assert "--gpus all" in machine.notes[0]


def test_one_lost_gpu_does_not_hide_the_others(roots: tuple[Path, Path]) -> None:
    machine = look(roots, cpu_only=False, nvml=FakeNvml([LOST, L40S]))
    assert [gpu.index for gpu in machine.gpus] == [1]
    assert "GPU 0 cannot be used: GPU is lost" in machine.notes[0]


def test_a_gpu_that_shares_system_memory_reports_that(roots: tuple[Path, Path]) -> None:
    machine = look(roots, cpu_only=False, nvml=FakeNvml([GB10]))
    assert machine.gpus[0].memory_total_bytes == 16 * GIB
    assert machine.notes == ("GPU 0 shares the system's memory",)


@pytest.mark.parametrize(
    ("visible", "names"),
    [
        (None, ["NVIDIA L40S", "NVIDIA H100 80GB HBM3"]),
        ("1", ["NVIDIA H100 80GB HBM3"]),
        ("1,0", ["NVIDIA H100 80GB HBM3", "NVIDIA L40S"]),
        ("", []),
        ("-1", []),
        ("0,7,1", ["NVIDIA L40S"]),
        ("GPU-5f3c", ["NVIDIA L40S", "NVIDIA H100 80GB HBM3"]),
    ],
)
def test_gpus_are_numbered_as_cuda_will_number_them(
    roots: tuple[Path, Path], visible: str | None, names: list[str]
) -> None:
    machine = look(roots, cpu_only=False, nvml=FakeNvml([L40S, H100]), visible_gpus=visible)
    assert [gpu.name for gpu in machine.gpus] == names
    assert [gpu.index for gpu in machine.gpus] == list(range(len(names)))
    assert visible is None or visible == "1,0" or "CUDA_VISIBLE_DEVICES" in " ".join(machine.notes)


def test_this_machine_can_be_described_and_no_runtime_is_imported_for_it() -> None:
    machine = detect()
    assert machine.num_cpus >= 1
    assert machine.memory_bytes > 0
    assert machine.gpus or machine.notes  # no GPU without a reason
    assert set(machine.runtimes) <= set(RUNTIMES)
    for name in ("onnxruntime", "openvino"):
        assert (name in machine.runtimes) == (importlib.util.find_spec(name) is not None)
