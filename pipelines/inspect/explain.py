"""Say which profile a server on some hardware would choose, and why none of the others: by the server's own functions.

The hardware is a SKU as the release has it from the matrix. What that leaves open (the host's CPU, the driver, how many
GPUs a container has) is assumed and shown, and can be given.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any

from pipelines.errors import PublishError
from pipelines.image import build
from pipelines.image.package_file import SkuFacts
from pipelines.release.document import Published
from serving.choice import select
from serving.choice.listing import listing_json
from serving.choice.select import Decision
from serving.choice.wanted import candidates
from serving.contract.profile import Gpu, Machine, Profile
from serving.errors import NoProfile

DRIVER = "580.65.06"  # the first branch of CUDA 13
GIB = 2**30
# What a CPU with the first has too: SKUs name the newest instructions that they are about.
V3 = frozenset({"avx", "avx2", "bmi1", "bmi2", "f16c", "fma", "movbe", "sse4_2"})
V4 = V3 | {"avx512f", "avx512bw", "avx512cd", "avx512dq", "avx512vl"}
IMPLIED: Mapping[str, frozenset[str]] = {
    "avx2": V3,
    "avx512f": V4,
    "avx512_vnni": V4,
    "avx512_bf16": V4 | {"avx512_vnni"},
    "amx_tile": V4 | {"avx512_vnni", "avx512_bf16"},
    "amx_bf16": V4 | {"avx512_vnni", "avx512_bf16", "amx_tile", "amx_int8"},
    "amx_int8": V4 | {"avx512_vnni", "avx512_bf16", "amx_tile", "amx_bf16"},
}


@dataclass(frozen=True, kw_only=True)
class Explanation:
    """What a server would decide on one SKU."""

    sku: str
    runtime: str  # the image that would be run there
    machine: Machine
    decisions: tuple[Decision, ...]
    chosen: Profile | None

    @property
    def summary(self) -> str:
        if self.chosen is None:
            return "none would run"
        on_cpu = self.machine.gpus and self.chosen.backend not in select.GPU_BACKENDS
        return self.chosen.name + (" (on the CPU: no engine is for this GPU)" if on_cpu else "")

    def json(self) -> dict[str, Any]:
        chosen = None if self.chosen is None else {"id": self.chosen.id, "name": self.chosen.name}
        listed = listing_json(self.decisions, self.machine)
        return {"sku": self.sku, "runtime": self.runtime, "chosen": chosen, **listed}


def explain(
    release: Published,
    sku: str,
    *,
    runtime: str | None = None,
    num_gpus: int = 1,
    cpu_features: frozenset[str] | None = None,
    driver: str = DRIVER,
) -> Explanation:
    """Decide every profile of a release for one SKU. Raises PublishError for what the release does not know.

    runtime: whose image is run; by default the one that is meant for the SKU. cpu_features: of the host of a GPU; by
    default x86-64-v3, which every server with such a GPU has.
    """
    skus = release.document.skus
    if sku not in skus:
        near = get_close_matches(sku, skus, n=3, cutoff=0.4)
        hint = f"did you mean {' or '.join(near)}? It has" if near else "it has"
        raise PublishError(f"the release knows no SKU {sku!r}; {hint}: {', '.join(skus) or 'none'}")
    facts = skus[sku]
    name = runtime or runtime_for(release, facts)
    if name not in build.RUNTIMES:
        raise PublishError(f"there is no runtime {name!r}; the runtimes are {', '.join(build.RUNTIMES)}")
    machine = Machine(
        cpu_arch=facts.cpu_arch or "x86_64",
        cpu_features=cpu_features if cpu_features is not None else features_of(facts),
        num_cpus=8,
        memory_bytes=64 * GIB,
        gpus=tuple(_gpu(index, sku, facts) for index in range(num_gpus if facts.kind == "gpu" else 0)),
        driver_version=driver if facts.kind == "gpu" else None,
        runtimes={b: version for b, version in versions(release).items() if b in build.RUNTIMES[name][1]},
    )
    offered = build.offer(release.manifest, name).profiles
    decisions = select.decide(offered, machine)
    try:
        chosen: Profile | None = candidates(decisions, None)[0]
    except NoProfile:
        chosen = None
    return Explanation(sku=sku, runtime=name, machine=machine, decisions=decisions, chosen=chosen)


def runtime_for(release: Published, facts: SkuFacts) -> str:
    """Whose image one would run on a SKU: the one with an engine for it, else the smallest."""
    runtimes = release.document.runtimes or tuple(
        name for name in build.RUNTIMES if build.offer(release.manifest, name).profiles
    )
    if not runtimes:
        raise PublishError(f"{release.document.model} has no profile that any runtime can execute")
    gpu = [name for name in runtimes if build.RUNTIMES[name][1] & select.GPU_BACKENDS]
    if facts.kind == "cpu":
        return next((name for name in runtimes if name not in gpu), runtimes[0])
    for name in gpu:
        profiles = build.offer(release.manifest, name).profiles
        if any(p.tags.get("compute_capability") == facts.compute_capability for p in profiles):
            return name
    return (gpu or runtimes)[0]


def features_of(facts: SkuFacts) -> frozenset[str]:
    """The instructions of a SKU's CPU, or of the host of a GPU."""
    if facts.kind == "gpu":
        return V3
    named = frozenset(facts.cpu_features)
    return named.union(*(IMPLIED.get(feature, frozenset()) for feature in named))


def versions(release: Published) -> Mapping[str, str]:
    """What the release's images execute with: backend -> version. Where the release does not say, its engines do."""
    recorded = {b: version for b, version in release.document.versions.items() if version != "not installed"}
    if recorded:
        return recorded
    profiles: Sequence[Profile] = release.manifest.profiles
    return {p.backend: p.tags.get(select.VERSION_TAGS.get(p.backend, ""), "any") for p in profiles}


def _gpu(index: int, sku: str, facts: SkuFacts) -> Gpu:
    """A GPU of a SKU, empty. Its memory is as sold, which is a little more than the driver shows."""
    memory = int((facts.memory_gib or 0) * GIB)
    return Gpu(
        index=index,
        name=f"NVIDIA {sku}",
        pci_device=facts.pci_ids[0] if facts.pci_ids else "",
        compute_capability=facts.compute_capability or "",
        memory_total_bytes=memory,
        memory_free_bytes=memory,
    )
