"""The machine as the server sees it: CPU flags, cgroup limits, GPUs, and what is missing."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from serving.choice.hardware import RUNTIMES, detect
from serving.contract.profile import Gpu, Machine
from tests.support import nvml_standin
from tests.support.nvml_standin import GB10, H100, L40S, needs_compiler

MIB, GIB = 2**20, 2**30


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


def with_gpus(roots: tuple[Path, Path], gpus: str | None, visible: str | None = None, **environ: str) -> Machine:
    """What a process sees of a machine whose driver is the stand-in."""
    code = (
        "import dataclasses, json, pathlib, sys\n"
        "from serving.choice.hardware import detect\n"
        "proc, cgroup, visible = json.load(sys.stdin)\n"
        "machine = detect(proc=pathlib.Path(proc), cgroup=pathlib.Path(cgroup), affinity=8, visible_gpus=visible)\n"
        "json.dump(dataclasses.asdict(machine), sys.stdout, default=sorted)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=nvml_standin.environ(gpus, **environ),
        input=json.dumps([str(roots[0]), str(roots[1]), visible]),
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    seen = json.loads(done.stdout)
    found = tuple(Gpu(**gpu) for gpu in seen.pop("gpus"))
    return Machine(**{**seen, "gpus": found, "notes": tuple(seen["notes"])})


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


@needs_compiler
def test_gpus_are_read_from_nvml(roots: tuple[Path, Path]) -> None:
    machine = with_gpus(roots, f"{L40S},util=3;{H100},mig=off")
    l40s, h100 = machine.gpus
    assert (l40s.index, l40s.name, l40s.pci_device, l40s.compute_capability) == (0, "NVIDIA L40S", "26b9", "8.9")
    assert (l40s.memory_total_bytes, l40s.memory_free_bytes, l40s.utilization_percent) == (46068 * MIB, 45000 * MIB, 3)
    assert (h100.index, h100.pci_device, h100.compute_capability) == (1, "2330", "9.0")
    assert machine.driver_version == "580.65.06"
    assert machine.notes == ()


@needs_compiler
def test_a_gpu_in_mig_mode_is_noted(roots: tuple[Path, Path]) -> None:
    machine = with_gpus(roots, f"{L40S};{H100},mig=on")
    assert len(machine.gpus) == 2
    assert machine.notes == ("GPU 1 is in MIG mode; the memory shown is the whole GPU's, not this instance's",)


@needs_compiler
def test_the_drivers_version_is_what_nvml_says(roots: tuple[Path, Path]) -> None:
    assert with_gpus(roots, L40S, NVML_STANDIN_DRIVER="570.86.10").driver_version == "570.86.10"


def test_cpu_only_does_not_look_for_gpus(roots: tuple[Path, Path]) -> None:
    machine = look(roots, cpu_only=True)
    assert machine.gpus == ()
    assert machine.notes == ("NIM_CPU_ONLY is set: GPUs were not looked for",)


@needs_compiler
def test_a_missing_driver_is_a_note_with_a_remedy(roots: tuple[Path, Path]) -> None:
    machine = with_gpus(roots, None)
    assert machine.gpus == ()
    assert "NVML: Driver Not Loaded" in machine.notes[0]
    assert "--gpus all" in machine.notes[0]


@needs_compiler
def test_a_driver_without_gpus_is_noted(roots: tuple[Path, Path]) -> None:
    machine = with_gpus(roots, "")
    assert (machine.gpus, machine.notes) == ((), ("NVML: the driver is loaded and reports no GPU",))


@needs_compiler
@pytest.mark.parametrize("calls", range(7))
def test_a_gpu_that_is_lost_at_any_moment_does_not_hide_the_others(roots: tuple[Path, Path], calls: int) -> None:
    """Seven calls are made about a GPU: whichever finds it lost, it is named and not listed."""
    machine = with_gpus(roots, f"{H100},lost={calls};{L40S}")
    assert [(gpu.index, gpu.name) for gpu in machine.gpus] == [(1, "NVIDIA L40S")]
    assert machine.notes == ("NVML: GPU 0 cannot be used: GPU is lost",)


@needs_compiler
def test_a_gpu_that_is_lost_after_all_was_asked_is_listed(roots: tuple[Path, Path]) -> None:
    """So the test above covers every call."""
    assert len(with_gpus(roots, f"{H100},lost=7;{L40S}").gpus) == 2


@needs_compiler
@pytest.mark.parametrize(
    ("failing", "words"),
    [
        ("nvmlInitWithFlags:18", "start the container with its driver"),
        ("nvmlDeviceGetCount_v2:999", "the GPUs cannot be counted"),
    ],
)
def test_a_call_that_fails_is_a_note_not_a_crash(roots: tuple[Path, Path], failing: str, words: str) -> None:
    machine = with_gpus(roots, L40S, NVML_STANDIN_FAIL=failing)
    assert machine.gpus == ()
    assert words in " ".join(machine.notes)


@needs_compiler
def test_gpus_are_listed_though_the_drivers_version_is_not_known(roots: tuple[Path, Path]) -> None:
    machine = with_gpus(roots, L40S, NVML_STANDIN_FAIL="nvmlSystemGetDriverVersion:999,nvmlShutdown:999")
    assert (len(machine.gpus), machine.driver_version) == (1, None)
    assert machine.notes == ("NVML: the driver's version is not known: Unknown Error",)


@needs_compiler
@pytest.mark.parametrize(("call", "listed"), [("UtilizationRates", 2), ("MigMode", 2), ("Name", 1), ("MemoryInfo", 1)])
def test_a_gpu_must_give_what_selection_needs_and_nothing_else(
    roots: tuple[Path, Path], call: str, listed: int
) -> None:
    machine = with_gpus(roots, f"{H100},fail=nvmlDeviceGet{call}:999;{L40S}")
    assert len(machine.gpus) == listed
    assert bool(machine.notes) == (listed == 1)


@needs_compiler
def test_a_gpu_that_shares_system_memory_reports_that(roots: tuple[Path, Path]) -> None:
    machine = with_gpus(roots, GB10)
    assert machine.gpus[0].memory_total_bytes == machine.gpus[0].memory_free_bytes == 16 * GIB
    assert machine.notes == ("GPU 0 shares the system's memory",)


@needs_compiler
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
    machine = with_gpus(roots, f"{L40S};{H100}", visible)
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
