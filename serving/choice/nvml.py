"""The GPUs of this machine as NVML reports them, and those of them that CUDA will see. Never fails."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import replace
from typing import Any

from serving.contract.profile import Gpu


def detect(system_memory: int) -> tuple[tuple[Gpu, ...], str | None, list[str]]:
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
    own_notes: list[str] = []
    handle = nvml.nvmlDeviceGetHandleByIndex(index)
    major, minor = nvml.nvmlDeviceGetCudaComputeCapability(handle)
    try:
        memory = nvml.nvmlDeviceGetMemoryInfo(handle)
        total, free = int(memory.total), int(memory.free)
    except nvml.NVMLError_NotSupported:  # GB10 and Jetson share the system's memory and report none of their own
        total = free = system_memory
        own_notes.append(f"GPU {index} shares the system's memory")
    try:
        utilization = int(nvml.nvmlDeviceGetUtilizationRates(handle).gpu)
    except nvml.NVMLError:  # not reported by every GPU, and only shown to people
        utilization = 0
    try:
        if nvml.nvmlDeviceGetMigMode(handle)[0] == nvml.NVML_DEVICE_MIG_ENABLE:
            own_notes.append(f"GPU {index} is in MIG mode; the memory shown is the whole GPU's, not this instance's")
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
    notes += own_notes
    return gpu


def visible(gpus: tuple[Gpu, ...], visible: str | None, notes: list[str]) -> tuple[Gpu, ...]:
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
