"""Metrics by NIM's names: the process, each tower's queue and batches, and GPUs as NVML tells of them."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from serving.batching.observing import Ran
from serving.tasks.table import TASKS
from serving.watch.metrics import Metrics

# NVML's calls that the gauges make, as a library that the real nvidia-ml-py loads. The second GPU tells no energy.
NVML = r"""
typedef struct { unsigned long long total, free, used; } memory_t;
typedef struct { unsigned gpu, memory; } utilization_t;
static int gpus[2] = {0, 1};
int nvmlInitWithFlags(unsigned flags) { (void)flags; return 0; }
int nvmlDeviceGetCount_v2(unsigned *out) { *out = 2; return 0; }
int nvmlDeviceGetHandleByIndex_v2(unsigned i, int **out) { *out = &gpus[i]; return 0; }
int nvmlDeviceGetPowerUsage(int *gpu, unsigned *out) { *out = 123456 + *gpu; return 0; }
int nvmlDeviceGetPowerManagementLimit(int *gpu, unsigned *out) { *out = 700000 + *gpu; return 0; }
int nvmlDeviceGetTotalEnergyConsumption(int *gpu, unsigned long long *out) { *out = 5000; return *gpu ? 3 : 0; }
int nvmlDeviceGetUtilizationRates(int *gpu, utilization_t *out) { out->gpu = 50 + *gpu; out->memory = 0; return 0; }
int nvmlDeviceGetMemoryInfo(int *gpu, memory_t *out) {
    out->total = 1000 + *gpu; out->free = 900; out->used = 100 + *gpu; return 0;
}
"""


def values(text: str) -> dict[str, float]:
    lines = [line.rpartition(" ") for line in text.splitlines() if not line.startswith("#")]
    return {name: float(value) for name, _, value in lines}


@pytest.mark.skipif(shutil.which("cc") is None, reason="needs a C compiler for the stand-in of libnvidia-ml")
def test_gpus_are_told_of_by_nims_names_and_what_one_does_not_give_is_left_out(tmp_path: Path) -> None:
    source = tmp_path / "nvml.c"
    source.write_text(NVML)
    library = tmp_path / "libnvidia-ml.so.1"
    subprocess.run(["cc", "-shared", "-fPIC", "-Wall", "-o", str(library), str(source)], check=True, timeout=60)
    code = (
        "import sys; from serving.watch.metrics import Metrics; metrics = Metrics(); metrics.watch_gpus();"
        "sys.stdout.write(metrics.text().decode())"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        timeout=60,
        env={**os.environ, "LD_LIBRARY_PATH": str(tmp_path)},
        cwd=Path(__file__).parents[3],
    )
    assert done.returncode == 0, done.stderr
    told = {name: value for name, value in values(done.stdout).items() if name.startswith("gpu_")}
    assert told == {
        'gpu_power_usage_watts{gpu="0"}': 123.456,
        'gpu_power_usage_watts{gpu="1"}': 123.457,
        'gpu_power_limit_watts{gpu="0"}': 700.0,
        'gpu_power_limit_watts{gpu="1"}': 700.001,
        'gpu_total_energy_consumption_joules{gpu="0"}': 5.0,
        'gpu_utilization{gpu="0"}': 0.5,
        'gpu_utilization{gpu="1"}': 0.51,
        'gpu_memory_total_bytes{gpu="0"}': 1000.0,
        'gpu_memory_total_bytes{gpu="1"}': 1001.0,
        'gpu_memory_used_bytes{gpu="0"}': 100.0,
        'gpu_memory_used_bytes{gpu="1"}': 101.0,
    }


def test_the_process_and_its_interpreter_are_told_of() -> None:
    told = values(Metrics().text().decode())
    for name in ("process_resident_memory_bytes", "process_open_fds", "process_start_time_seconds"):
        assert told[name] > 0
    assert any(name.startswith("python_info{") for name in told)
    assert any(name.startswith("python_gc_") for name in told)


def test_a_batch_leaves_its_figures_under_its_tower() -> None:
    metrics = Metrics()
    for tower in TASKS["clip"].towers:
        metrics.lane(tower)
    image = metrics.lane("image")
    image.watch_queue(lambda: 3)
    image.ran(Ran(num_items=4, cost=60, padded_cost=80, seconds=0.2, share=0.5, waited_s=[0.1, 0.1, 0.3, 0.5]))
    told = values(metrics.text().decode())
    assert told['queue_depth{tower="image"}'] == 3
    assert told['batch_size_sum{tower="image"}'] == 4
    assert told['batch_tokens_sum{tower="image"}'] == 60
    assert told['batch_seconds_sum{tower="image"}'] == 0.2
    assert told['engine_busy_seconds_total{tower="image"}'] == 0.1
    assert told['padded_tokens_total{tower="image"}'] == 80
    assert told['padding_waste_ratio_sum{tower="image"}'] == 0.25
    assert told['queue_time_seconds_count{tower="image"}'] == 4
    assert told['queue_time_seconds_sum{tower="image"}'] == pytest.approx(1.0)
    assert told['batch_size_count{tower="text"}'] == 0


def test_failures_are_counted_apart() -> None:
    metrics = Metrics()
    for status in (200, 400, 500, 499):
        metrics.answered("/v1/embeddings", status, 0.1)
    told = values(metrics.text().decode())
    assert told['request_count_total{route="/v1/embeddings",status="200"}'] == 1
    failures = [name for name in told if name.startswith("request_failure_total")]
    assert len(failures) == 3
    assert told['e2e_request_latency_seconds_count{route="/v1/embeddings"}'] == 4
