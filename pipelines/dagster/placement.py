"""Where a run belongs: the queue, and the Kubernetes pod, of the hardware that its row is for. Imports no dagster.

Runs of no row (exports, manifests, images) belong to the default queue and to a pod without a GPU.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from pipelines.errors import WorkerError
from pipelines.matrix.compilers import COMPILERS
from pipelines.matrix.values import Matrix, Row, RowName, Sku, Worker, refusal_here

DEFAULT_QUEUE = "home"
GPU_LABEL = "nvidia.com/gpu.product"  # NVIDIA's GPU feature discovery writes it
GPU_RESOURCE = "nvidia.com/gpu"
ARCHITECTURES = {"x86_64": "amd64", "aarch64": "arm64"}  # Linux's names, and Kubernetes'
WORKER_SKUS = "ENGINERY_SERVES"  # of a worker: the SKUs of its queues, separated by commas; not set: no worker


def queue(sku: str) -> str:
    return f"sku.{sku}"


def sku_of(partition: str | None) -> str | None:
    """The SKU in a partition's name, if it is a row's: "tiny__l40s__fp8__tp1" -> "l40s"."""
    name = RowName.parse(partition or "")
    return None if name is None else name.sku


def queue_of(partition: str | None) -> str:
    sku = sku_of(partition)
    return DEFAULT_QUEUE if sku is None else queue(sku)


def needs_gpu(row: Row) -> bool:
    """Whether its engine can be made only where the GPU is."""
    return COMPILERS[row.sku.compiler].needs_gpu or row.tp > 1


def pod(row: Row) -> dict[str, Any]:
    """What a row asks of its pod: dagster-k8s merges it into the run's job (tag dagster-k8s/config).

    A row whose engine is compiled ahead of time runs on any node of its CPU architecture.
    """
    worker = {"env": [{"name": WORKER_SKUS, "value": row.sku.name}]}  # so that the pod checks what it landed on
    if not needs_gpu(row):
        arch = ARCHITECTURES[row.sku.cpu_arch or "x86_64"]
        return {"container_config": worker, "pod_spec_config": {"node_selector": {"kubernetes.io/arch": arch}}}
    wanted = {"key": GPU_LABEL, "operator": "In", "values": labels_of(row.sku)}
    nodes = {"node_selector_terms": [{"match_expressions": [wanted]}]}
    return {
        "container_config": {**worker, "resources": {"limits": {GPU_RESOURCE: str(row.tp)}}},
        "pod_spec_config": {
            "affinity": {"node_affinity": {"required_during_scheduling_ignored_during_execution": nodes}},
            "tolerations": [{"key": GPU_RESOURCE, "operator": "Exists", "effect": "NoSchedule"}],
        },
    }


def labels_of(sku: Sku) -> list[str]:
    """The node label's whole value in every form that NVIDIA's drivers use: "NVIDIA-H100-PCIe", "Tesla-T4".

    The matrix has a lower-cased part of it, and a selector compares whole values, case included.
    """
    assert sku.product is not None  # every GPU SKU has one
    name = sku.product.removeprefix("nvidia-").removeprefix("tesla-").upper()
    forms = dict.fromkeys((name, name.replace("PCIE", "PCIe")))
    return [f"{maker}-{form}" for maker in ("NVIDIA", "Tesla") for form in forms]


def refusals(matrix: Matrix, skus: Iterable[str], worker: Worker) -> list[str]:
    """Why a worker on this machine cannot serve these SKUs; empty when it can."""
    problems = []
    for name in skus:
        if name not in matrix.skus:
            problems.append(f"{name}: the matrix has no such SKU; it has {', '.join(matrix.skus)}")
            continue
        rows = [row for row in matrix.rows if row.sku.name == name]
        reasons = dict.fromkeys(reason for row in rows if (reason := refusal_here(row, worker)) is not None)
        if rows and len({row.name for row in rows if refusal_here(row, worker) is None}) == 0:
            problems.append(f"{name}: {'; '.join(reasons)}")
    return problems


def verify(matrix: Matrix, skus: Iterable[str], worker: Worker) -> None:
    """Raise WorkerError with every reason why this machine does not serve these SKUs."""
    problems = refusals(matrix, skus, worker)
    if problems:
        raise WorkerError("\n".join(["this machine cannot serve:", *(f"  {problem}" for problem in problems)]))


def refusal(row: Row, worker: Worker, environ: Mapping[str, str]) -> str | None:
    """Why a worker that got this row's run must not build it; None when it may, and where this is no worker."""
    skus = environ.get(WORKER_SKUS)
    if skus is None:
        return None
    if row.sku.name not in skus.split(","):
        return f"{row.name} is for {row.sku.name}, this worker serves {skus}: its run was put into a wrong queue"
    return refusal_here(row, worker)
