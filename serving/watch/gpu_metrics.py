"""GPU gauges by NIM's names, asked of NVML at each scrape: the only module that knows which NVML call is which."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector


class GpuCollector(Collector):
    """Every GPU that NVML sees, by index. A figure that a GPU does not give is left out."""

    def __init__(self) -> None:
        import pynvml

        self._nvml: Any = pynvml
        pynvml.nvmlInit()

    def collect(self) -> Iterator[GaugeMetricFamily]:
        nvml = self._nvml
        figures: dict[str, tuple[str, Callable[[Any], float]]] = {
            "gpu_power_usage_watts": ("Power now.", lambda gpu: nvml.nvmlDeviceGetPowerUsage(gpu) / 1000),
            "gpu_power_limit_watts": ("Power limit.", lambda gpu: nvml.nvmlDeviceGetPowerManagementLimit(gpu) / 1000),
            "gpu_total_energy_consumption_joules": (
                "Energy since the driver was loaded.",
                lambda gpu: nvml.nvmlDeviceGetTotalEnergyConsumption(gpu) / 1000,
            ),
            "gpu_utilization": (
                "Share of time that a kernel ran, 0 to 1.",
                lambda gpu: nvml.nvmlDeviceGetUtilizationRates(gpu).gpu / 100,
            ),
            "gpu_memory_total_bytes": ("Memory.", lambda gpu: nvml.nvmlDeviceGetMemoryInfo(gpu).total),
            "gpu_memory_used_bytes": ("Memory in use.", lambda gpu: nvml.nvmlDeviceGetMemoryInfo(gpu).used),
        }
        try:
            count = nvml.nvmlDeviceGetCount()
        except nvml.NVMLError:  # the driver went away: a scrape must still answer
            return
        for name, (meaning, ask) in figures.items():
            family = GaugeMetricFamily(name, meaning, labels=["gpu"])
            for index in range(count):
                try:
                    family.add_metric([str(index)], float(ask(nvml.nvmlDeviceGetHandleByIndex(index))))
                except nvml.NVMLError:
                    continue
            yield family
