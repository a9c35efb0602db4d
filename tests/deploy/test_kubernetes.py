"""What is asked of Kubernetes, against its published schemas: the shipped objects, and the Job of a row's run."""

from __future__ import annotations

import json
from typing import Any

import kubernetes_validate
import pytest
import yaml

from pipelines.dagster.placement import WORKER_SKUS, labels_of, pod
from pipelines.matrix.load import load
from pipelines.matrix.values import Row
from tests.support.services import ROOT

FOLDER = ROOT / "deploy" / "kubernetes"
VERSION = "1.31"
OBJECTS = [item for item in yaml.safe_load_all((FOLDER / "enginery.yaml").read_text()) if item]
MATRIX = load(ROOT / "sku_matrix.yaml")


def check(item: dict[str, Any]) -> None:
    kubernetes_validate.validate(item, VERSION, strict=True)


def job(row: Row) -> dict[str, Any]:
    """The Job that dagster-k8s makes of the row's tag and of the launcher's settings that are shipped."""
    from dagster_k8s.container_context import K8sContainerContext  # these take seconds, and only some tests need them
    from dagster_k8s.job import DagsterK8sJobConfig, construct_dagster_k8s_job, get_user_defined_k8s_config
    from kubernetes.client import ApiClient

    settings = yaml.safe_load((FOLDER / "dagster.yaml").read_text())["run_launcher"]["config"]
    shared = K8sContainerContext.create_from_config({"k8s": {"run_k8s_config": settings["run_k8s_config"]}})
    own = get_user_defined_k8s_config({"dagster-k8s/config": json.dumps(pod(row))})
    merged = shared.merge(K8sContainerContext(run_k8s_config=own)).run_k8s_config
    config = DagsterK8sJobConfig(
        job_image="factory:1",
        dagster_home=settings["dagster_home"],
        instance_config_map=settings["instance_config_map"],
        postgres_password_secret=settings["postgres_password_secret"],
        service_account_name=settings["service_account_name"],
    )
    manifest = construct_dagster_k8s_job(config, ["dagster", "api"], "dagster-run-1", user_defined_k8s_config=merged)
    plain: dict[str, Any] = ApiClient().sanitize_for_serialization(manifest)
    return plain


def row(sku: str) -> Row:
    return next(row for row in MATRIX.rows if row.sku.name == sku)


@pytest.mark.parametrize("item", OBJECTS, ids=lambda item: f"{item['kind']}-{item['metadata']['name']}")
def test_a_shipped_object_is_valid(item: dict[str, Any]) -> None:
    check(item)


def test_the_check_would_see_a_misspelled_field() -> None:
    (daemon,) = (item for item in OBJECTS if item["metadata"]["name"] == "enginery-daemon")
    wrong = json.loads(json.dumps(daemon))
    wrong["spec"]["template"]["spec"]["containers"][0]["volumeMount"] = []
    with pytest.raises(kubernetes_validate.ValidationError):
        check(wrong)


def test_a_row_that_needs_its_gpu_asks_for_that_product_and_for_as_many_as_its_tp() -> None:
    hopper = row("h100-sxm-80gb")
    manifest = job(hopper)
    check(manifest)
    spec = manifest["spec"]["template"]["spec"]
    (container,) = spec["containers"]
    assert container["resources"]["limits"] == {"nvidia.com/gpu": str(hopper.tp)}
    assert {"name": WORKER_SKUS, "value": "h100-sxm-80gb"} in container["env"]
    ((wanted,),) = (
        term["matchExpressions"]
        for term in spec["affinity"]["nodeAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"][
            "nodeSelectorTerms"
        ]
    )
    assert wanted["key"] == "nvidia.com/gpu.product"
    assert "NVIDIA-H100-80GB-HBM3" in wanted["values"]
    claims = [volume.get("persistentVolumeClaim") for volume in spec["volumes"]]
    assert {"claimName": "enginery-store"} in claims


def test_a_row_that_is_compiled_ahead_of_time_takes_no_gpu() -> None:
    manifest = job(row("l40s"))
    check(manifest)
    spec = manifest["spec"]["template"]["spec"]
    assert "nvidia.com/gpu" not in json.dumps(spec)
    assert spec["nodeSelector"] == {"kubernetes.io/arch": "amd64"}


def test_every_row_of_the_demo_matrix_makes_a_valid_job() -> None:
    for each in MATRIX.rows:
        check(job(each))


@pytest.mark.parametrize(
    ("sku", "label"),
    [
        ("h100-sxm-80gb", "NVIDIA-H100-80GB-HBM3"),
        ("h100-pcie-80gb", "NVIDIA-H100-PCIe"),
        ("h200-sxm-141gb", "NVIDIA-H200"),
        ("a100-pcie-80gb", "NVIDIA-A100-80GB-PCIe"),
        ("t4", "Tesla-T4"),
    ],
)
def test_the_label_is_spelled_as_the_driver_spells_it(sku: str, label: str) -> None:
    assert label in labels_of(MATRIX.skus[sku])


def test_nothing_shipped_names_a_machine() -> None:
    for path in (ROOT / "deploy").rglob("*"):
        if path.is_file():
            assert str(ROOT) not in path.read_text()
