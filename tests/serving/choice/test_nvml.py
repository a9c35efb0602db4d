"""GPUs as NVML reports them: what is lost, refused or not reported is a note and hides no other."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from serving.contract.profile import Gpu, Machine
from tests.support import nvml_standin
from tests.support.nvml_standin import GB10, H100, L40S, needs_compiler

MIB, GIB = 2**20, 2**30


def with_gpus(gpus: str | None, visible: str | None = None, **environ: str) -> Machine:
    """What a process sees of a machine of 16 GiB whose driver is the stand-in."""
    code = (
        "import dataclasses, json, sys\n"
        "from serving.choice import nvml\n"
        "memory, visible = json.load(sys.stdin)\n"
        "gpus, driver, notes = nvml.detect(memory)\n"
        "gpus = [dataclasses.asdict(gpu) for gpu in nvml.visible(gpus, visible, notes)]\n"
        "json.dump([gpus, driver, notes], sys.stdout)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=nvml_standin.environ(gpus, **environ),
        input=json.dumps([16 * GIB, visible]),
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    seen, driver, notes = json.loads(done.stdout)
    return Machine(
        cpu_arch="x86_64",
        cpu_features=frozenset(),
        num_cpus=8,
        memory_bytes=16 * GIB,
        gpus=tuple(Gpu(**gpu) for gpu in seen),
        driver_version=driver,
        notes=tuple(notes),
    )


@needs_compiler
def test_gpus_are_read_from_nvml() -> None:
    machine = with_gpus(f"{L40S},util=3;{H100},mig=off")
    l40s, h100 = machine.gpus
    assert (l40s.index, l40s.name, l40s.pci_device, l40s.compute_capability) == (0, "NVIDIA L40S", "26b9", "8.9")
    assert (l40s.memory_total_bytes, l40s.memory_free_bytes, l40s.utilization_percent) == (46068 * MIB, 45000 * MIB, 3)
    assert (h100.index, h100.pci_device, h100.compute_capability) == (1, "2330", "9.0")
    assert machine.driver_version == "580.65.06"
    assert machine.notes == ()


@needs_compiler
def test_a_gpu_in_mig_mode_is_noted() -> None:
    machine = with_gpus(f"{L40S};{H100},mig=on")
    assert len(machine.gpus) == 2
    assert machine.notes == ("GPU 1 is in MIG mode; the memory shown is the whole GPU's, not this instance's",)


@needs_compiler
def test_the_drivers_version_is_what_nvml_says() -> None:
    assert with_gpus(L40S, NVML_STANDIN_DRIVER="570.86.10").driver_version == "570.86.10"


@needs_compiler
def test_a_missing_driver_is_a_note_with_a_remedy() -> None:
    machine = with_gpus(None)
    assert machine.gpus == ()
    assert "NVML: Driver Not Loaded" in machine.notes[0]
    assert "--gpus all" in machine.notes[0]


@needs_compiler
def test_a_driver_without_gpus_is_noted() -> None:
    machine = with_gpus("")
    assert (machine.gpus, machine.notes) == ((), ("NVML: the driver is loaded and reports no GPU",))


@needs_compiler
@pytest.mark.parametrize("calls", range(7))
def test_a_gpu_that_is_lost_at_any_moment_does_not_hide_the_others(calls: int) -> None:
    """Seven calls are made about a GPU: whichever finds it lost, it is named and not listed."""
    machine = with_gpus(f"{H100},lost={calls};{L40S}")
    assert [(gpu.index, gpu.name) for gpu in machine.gpus] == [(1, "NVIDIA L40S")]
    assert machine.notes == ("NVML: GPU 0 cannot be used: GPU is lost",)


@needs_compiler
def test_a_gpu_that_is_lost_after_all_was_asked_is_listed() -> None:
    """So the test above covers every call."""
    assert len(with_gpus(f"{H100},lost=7;{L40S}").gpus) == 2


@needs_compiler
@pytest.mark.parametrize(
    ("failing", "words"),
    [
        ("nvmlInitWithFlags:18", "start the container with its driver"),
        ("nvmlDeviceGetCount_v2:999", "the GPUs cannot be counted"),
    ],
)
def test_a_call_that_fails_is_a_note_not_a_crash(failing: str, words: str) -> None:
    machine = with_gpus(L40S, NVML_STANDIN_FAIL=failing)
    assert machine.gpus == ()
    assert words in " ".join(machine.notes)


@needs_compiler
def test_gpus_are_listed_though_the_drivers_version_is_not_known() -> None:
    machine = with_gpus(L40S, NVML_STANDIN_FAIL="nvmlSystemGetDriverVersion:999,nvmlShutdown:999")
    assert (len(machine.gpus), machine.driver_version) == (1, None)
    assert machine.notes == ("NVML: the driver's version is not known: Unknown Error",)


@needs_compiler
@pytest.mark.parametrize(("call", "listed"), [("UtilizationRates", 2), ("MigMode", 2), ("Name", 1), ("MemoryInfo", 1)])
def test_a_gpu_must_give_what_selection_needs_and_nothing_else(call: str, listed: int) -> None:
    machine = with_gpus(f"{H100},fail=nvmlDeviceGet{call}:999;{L40S}")
    assert len(machine.gpus) == listed
    assert bool(machine.notes) == (listed == 1)


@needs_compiler
def test_a_gpu_that_shares_system_memory_reports_that() -> None:
    machine = with_gpus(GB10)
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
def test_gpus_are_numbered_as_cuda_will_number_them(visible: str | None, names: list[str]) -> None:
    machine = with_gpus(f"{L40S};{H100}", visible)
    assert [gpu.name for gpu in machine.gpus] == names
    assert [gpu.index for gpu in machine.gpus] == list(range(len(names)))
    assert visible is None or visible == "1,0" or "CUDA_VISIBLE_DEVICES" in " ".join(machine.notes)
