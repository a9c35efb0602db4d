"""The machine as the server sees it: CPU flags, cgroup limits, GPUs, and what is missing."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import pytest

from serving.choice.hardware import RUNTIMES, detect
from serving.contract.profile import Machine

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


def test_cpu_only_does_not_look_for_gpus(roots: tuple[Path, Path]) -> None:
    machine = look(roots, cpu_only=True)
    assert machine.gpus == ()
    assert machine.notes == ("NIM_CPU_ONLY is set: GPUs were not looked for",)


def test_this_machine_can_be_described_and_no_runtime_is_imported_for_it() -> None:
    machine = detect()
    assert machine.num_cpus >= 1
    assert machine.memory_bytes > 0
    assert machine.gpus or machine.notes  # no GPU without a reason
    assert set(machine.runtimes) <= set(RUNTIMES)
    for name in ("onnxruntime", "openvino"):
        assert (name in machine.runtimes) == (importlib.util.find_spec(name) is not None)
