"""Which of our profiles the operator would cache: nodes and specs against the repository's matrix."""

from __future__ import annotations

from dataclasses import replace

import pytest

from serving.choice.select import decide
from serving.choice.wanted import candidates
from serving.contract import manifest
from serving.contract.profile import Gpu, Machine, Profile
from tests.operator.match_profiles import GpuSpec, ModelSpec, OperatorProfile, match_profiles
from tests.support.published import VERSIONS

ANY = ModelSpec()
CPUS = {"cpu-x86-64", "cpu-avx2", "cpu-avx512-bf16", "cpu-amx"}  # agnostic: matched wherever GPUs do not decide
HOPPER = {"h100-sxm-80gb", "h100-pcie-80gb", "h100-nvl-94gb", "h200-sxm-141gb"}
A100 = {"a100-sxm-80gb", "a100-sxm-40gb", "a100-pcie-80gb", "a100-pcie-40gb"}
GPUS_8_6_TO_8_9 = {"a10g", "rtx-a6000", "l40s", "l4", "rtx-6000-ada", "rtx-4090"}
GPUS = HOPPER | A100 | GPUS_8_6_TO_8_9 | {"b200-180gb", "rtx-5090", "rtx-pro-6000-blackwell", "t4"}
FP8 = GPUS - A100 - {"a10g", "rtx-a6000", "t4"}


def named(*products: str, ids: tuple[str, ...] = ()) -> ModelSpec:
    return ModelSpec(gpus=tuple(GpuSpec(product=product, ids=ids) for product in products))


# nvidia.com/gpu.product of the nodes, the spec -> the SKUs whose profiles are cached
TABLE: list[tuple[tuple[str, ...], ModelSpec, set[str]]] = [
    # One kind of node, nothing asked.
    (("NVIDIA-H100-80GB-HBM3",), ANY, {"h100-sxm-80gb"} | CPUS),
    (("NVIDIA-H100-PCIe",), ANY, {"h100-pcie-80gb"} | CPUS),
    (("NVIDIA-H100-NVL",), ANY, {"h100-nvl-94gb"} | CPUS),
    (("NVIDIA-H200",), ANY, {"h200-sxm-141gb"} | CPUS),
    (("NVIDIA-B200",), ANY, {"b200-180gb"} | CPUS),
    (("NVIDIA-A100-SXM4-80GB",), ANY, {"a100-sxm-80gb"} | CPUS),
    (("NVIDIA-A100-SXM4-40GB",), ANY, {"a100-sxm-40gb"} | CPUS),
    (("NVIDIA-A100-80GB-PCIe",), ANY, {"a100-pcie-80gb"} | CPUS),
    (("NVIDIA-A100-PCIE-40GB",), ANY, {"a100-pcie-40gb"} | CPUS),
    (("NVIDIA-A10G",), ANY, {"a10g"} | CPUS),
    (("NVIDIA-RTX-A6000",), ANY, {"rtx-a6000"} | CPUS),
    (("NVIDIA-L4",), ANY, {"l4"} | CPUS),
    (("NVIDIA-RTX-6000-Ada-Generation",), ANY, {"rtx-6000-ada"} | CPUS),
    (("NVIDIA-GeForce-RTX-4090",), ANY, {"rtx-4090"} | CPUS),
    (("NVIDIA-GeForce-RTX-5090",), ANY, {"rtx-5090"} | CPUS),
    (("NVIDIA-RTX-PRO-6000-Blackwell-Server-Edition",), ANY, {"rtx-pro-6000-blackwell"} | CPUS),
    (("NVIDIA-RTX-PRO-6000-Blackwell-Max-Q-Workstation-Edition",), ANY, {"rtx-pro-6000-blackwell"} | CPUS),
    (("Tesla-T4",), ANY, {"t4"} | CPUS),
    # GPUs that are shared or cut in parts have longer labels.
    (("NVIDIA-L40S-SHARED",), ANY, {"l40s", "l4"} | CPUS),
    (("NVIDIA-A100-SXM4-40GB-MIG-1g.5gb",), ANY, {"a100-sxm-40gb"} | CPUS),
    # Labels that contain others' names.
    (("NVIDIA-L40S",), ANY, {"l40s", "l4"} | CPUS),
    (("NVIDIA-L40",), ANY, {"l4"} | CPUS),
    (("NVIDIA-A10",), ANY, CPUS),
    (("NVIDIA-GH200-480GB",), ANY, CPUS),
    (("NVIDIA-GB200",), ANY, CPUS),
    # GPUs that no row names, and none at all.
    (("NVIDIA-GeForce-RTX-4080",), ANY, CPUS),
    (("NVIDIA-GB10",), ANY, CPUS),
    ((), ANY, GPUS | CPUS),
    # Mixed clusters.
    (("NVIDIA-H100-80GB-HBM3", "NVIDIA-A10G", ""), ANY, {"h100-sxm-80gb", "a10g"} | CPUS),
    (("Tesla-T4", "NVIDIA-L40S", "Tesla-T4"), ANY, {"t4", "l40s", "l4"} | CPUS),
    # What a spec asks for.
    (("NVIDIA-L40S",), ModelSpec(precision="fp8"), {"l40s", "l4"}),
    (("NVIDIA-L40S",), ModelSpec(precision="FP16"), {"l40s", "l4"}),
    (("NVIDIA-A10G",), ModelSpec(precision="fp8"), set()),
    (("NVIDIA-A10G",), ModelSpec(precision="fp32"), {"cpu-x86-64", "cpu-avx2", "cpu-avx512-bf16"}),
    (("NVIDIA-H200",), ModelSpec(engine="tensorrt"), {"h200-sxm-141gb"}),
    (("NVIDIA-H200",), ModelSpec(engine="tensorrt_llm"), {"h200-sxm-141gb"}),
    (("NVIDIA-H200",), ModelSpec(engine="onnx"), {"cpu-x86-64"}),
    (("NVIDIA-H200",), ModelSpec(engine="openvino"), CPUS - {"cpu-x86-64"}),
    (("NVIDIA-GB10",), ModelSpec(engine="tensorrt"), set()),
    (("NVIDIA-H200",), ModelSpec(engine="vllm"), set()),
    (("Tesla-T4",), ModelSpec(tensor_parallelism="1"), {"t4"} | CPUS),
    (("Tesla-T4",), ModelSpec(tensor_parallelism="2"), set()),
    (("Tesla-T4",), ModelSpec(qos_profile="latency"), set()),
    (("Tesla-T4",), ModelSpec(lora=True), set()),
    (("Tesla-T4",), ModelSpec(lora=False), set()),  # we write no feat_lora, as NVIDIA's retrievers do not
    (("Tesla-T4",), ModelSpec(buildable=True), set()),
    ((), ModelSpec(precision="fp8"), FP8),
    ((), ModelSpec(precision="bf16"), {"cpu-avx512-bf16", "cpu-amx"}),
    ((), ModelSpec(precision="fp8", engine="tensorrt"), FP8),
    # GPUs that a spec names: the nodes do not count then, and profiles without a GPU do not match.
    (("Tesla-T4",), named("l40s"), {"l40s"}),
    ((), named("L40S"), {"l40s"}),
    ((), named("l4"), {"l4", "l40s"}),
    ((), named("a100"), A100),
    ((), named("h100"), HOPPER - {"h200-sxm-141gb"}),
    ((), named("h200"), {"h200-sxm-141gb"}),
    ((), named("rtx-pro-6000-blackwell"), {"rtx-pro-6000-blackwell"}),
    ((), named("l40s", "tesla-t4"), {"l40s", "t4"}),
    ((), named("l4", ids=("27b8",)), {"l4"}),
    ((), named("a100", ids=("20b2", "20f1")), {"a100-sxm-80gb", "a100-pcie-40gb"}),
    ((), named("l40s", ids=("26b5",)), set()),
    ((), named("rtx-pro-6000-blackwell", ids=("2bb5",)), set()),  # a SKU of several ids: name its product alone
    ((), named("gb200"), set()),
    ((), replace(named("l40s"), precision="fp8", engine="tensorrt", tensor_parallelism="1"), {"l40s"}),
]


@pytest.mark.parametrize(("labels", "spec", "skus"), TABLE)
def test_the_operator_caches_these_skus(
    offered: tuple[OperatorProfile, ...], labels: tuple[str, ...], spec: ModelSpec, skus: set[str]
) -> None:
    assert {profile.tags["sku"] for profile in match_profiles(offered, spec, labels)} == skus


def test_every_sku_of_the_matrix_is_expected_somewhere(offered: tuple[OperatorProfile, ...]) -> None:
    """A new SKU needs its lines here."""
    assert {profile.tags["sku"] for profile in offered} == GPUS | CPUS


LABELS = sorted({label for labels, _, _ in TABLE for label in labels if label})


@pytest.mark.parametrize("label", [*LABELS, "NVIDIA-Something-Else", "nvidia", "x"])
def test_a_profile_for_any_machine_is_always_cached(offered: tuple[OperatorProfile, ...], label: str) -> None:
    """No match at all would fail the NIMCache: "no profiles are selected for caching"."""
    matched = match_profiles(offered, ANY, (label,))
    assert any(profile.tags["backend"] == "onnxruntime" for profile in matched)
    assert not [profile for profile in matched if profile.tags["backend"] == "onnxruntime" and "gpu" in profile.tags]


def test_gpu_tags_are_such_that_the_operators_substrings_find_their_own_node(
    offered: tuple[OperatorProfile, ...],
) -> None:
    """Lower case, with the dashes of node labels, and of no length that is part of everything."""
    tags = {profile.tags["gpu"] for profile in offered if "gpu" in profile.tags}
    assert all(tag == tag.lower() and "_" not in tag and " " not in tag and len(tag) >= 4 for tag in tags)
    for tag in tags:
        assert any(tag in label.lower() for label in LABELS), tag


# ---- the traps: the operator caches too much, the server chooses exactly --------------------------------------------

NAIVE = {"l4": "l4", "a10g": "a10", "h200-sxm-141gb": "h200", "b200-180gb": "b200"}  # the tags most people would write
# node label -> PCI id, compute capability, CPU; the SKU that a substring takes it for; the SKU that serves there
TRAPS = {
    "NVIDIA-L40S": ("26b9", "8.9", "x86_64", "l4", "l40s"),
    "NVIDIA-L40": ("26b5", "8.9", "x86_64", "l4", "l4"),  # of its compute capability: the only one that is cached
    "NVIDIA-A100-SXM4-80GB": ("20b2", "8.0", "x86_64", "a10g", "a100-sxm-80gb"),
    "NVIDIA-A100-80GB-PCIe": ("20b5", "8.0", "x86_64", "a10g", "a100-pcie-80gb"),
    "NVIDIA-A10G": ("2237", "8.6", "x86_64", "a10g", "a10g"),
    "NVIDIA-GH200-480GB": ("2342", "9.0", "aarch64", "h200-sxm-141gb", "cpu-x86-64"),
    "NVIDIA-GB200": ("2941", "10.0", "aarch64", "b200-180gb", "cpu-x86-64"),
    "NVIDIA-H200": ("2335", "9.0", "x86_64", "h200-sxm-141gb", "h200-sxm-141gb"),
    "NVIDIA-B200": ("2901", "10.0", "x86_64", "b200-180gb", "b200-180gb"),
    "NVIDIA-L4": ("27b8", "8.9", "x86_64", "l4", "l4"),
}


def machine(label: str) -> Machine:
    device, capability, arch, _, _ = TRAPS[label]
    gpu = Gpu(
        index=0,
        name=label.replace("-", " "),
        pci_device=device,
        compute_capability=capability,
        memory_total_bytes=80 * 10**9,
        memory_free_bytes=80 * 10**9,
    )
    features = frozenset({"avx2", "fma", "avx512_bf16"}) if arch == "x86_64" else frozenset({"asimd"})
    return Machine(cpu_arch=arch, cpu_features=features, num_cpus=8, memory_bytes=2**36, gpus=(gpu,), runtimes=VERSIONS)


def naive(profiles: tuple[Profile, ...]) -> tuple[Profile, ...]:
    return tuple(
        replace(p, tags={**p.tags, "gpu": NAIVE[p.tags["sku"]]}) if p.tags["sku"] in NAIVE else p for p in profiles
    )


def cached(profiles: tuple[Profile, ...], label: str) -> list[Profile]:
    seen = tuple(OperatorProfile(id=profile.id, tags=profile.tags, uris={}) for profile in profiles)
    ids = {profile.id for profile in match_profiles(seen, ANY, (label,))}
    return [profile for profile in profiles if profile.id in ids]


@pytest.mark.parametrize("label", TRAPS)
@pytest.mark.parametrize("write", ["as the matrix does", "naively"])
def test_the_server_chooses_the_exact_sku_out_of_whatever_was_cached(shipped: bytes, label: str, write: str) -> None:
    profiles = manifest.load(shipped).profiles
    _, _, _, mistaken, exact = TRAPS[label]
    if write == "naively":
        profiles = naive(profiles)
        assert mistaken in {profile.tags["sku"] for profile in cached(profiles, label)}  # the trap springs
    superset = cached(profiles, label)
    assert len({profile.tags["sku"] for profile in superset}) > 1
    chosen = candidates(decide(superset, machine(label)), None)[0]
    assert chosen.tags["sku"] == exact
    if label != "NVIDIA-L40":  # no row is for it: of several relatives, the operator caches the one it mistakes it for
        assert candidates(decide(profiles, machine(label)), None)[0] == chosen


@pytest.mark.parametrize(
    ("label", "trap"),
    [
        ("NVIDIA-A100-SXM4-80GB", "a10g"),
        ("NVIDIA-GH200-480GB", "h200-sxm-141gb"),
        ("NVIDIA-GB200", "b200-180gb"),
    ],
)
def test_the_matrix_writes_tags_that_three_of_the_traps_do_not_catch(shipped: bytes, label: str, trap: str) -> None:
    assert trap not in {profile.tags["sku"] for profile in cached(manifest.load(shipped).profiles, label)}
    assert trap in {profile.tags["sku"] for profile in cached(naive(manifest.load(shipped).profiles), label)}
