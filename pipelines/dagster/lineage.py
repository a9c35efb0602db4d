"""What each partition of each asset comes from, and which are stale: the plan in the words of Dagster's asset graph.

Dagster compares data versions. So that it calls stale exactly what `enginery plan` would build, a partition depends on
partitions of other assets and of three source assets: the model's revision, the toolchain, its own steps' settings.
This module imports no dagster. https://docs.dagster.io/guides/build/assets/asset-versioning-and-caching
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

from pipelines.image.runtime import CONTAINERS
from pipelines.matrix.values import Model
from pipelines.plan.code import digest
from pipelines.plan.graph import Graph, RowPlan, Step
from pipelines.plan.staleness import REVISION, Cause, Plan
from pipelines.store.files import file_digest, key_of

MODEL_REVISION, TOOLCHAIN, SETTINGS = "model_revision", "toolchain", "settings"  # the source assets
ASSETS = ("fp32_onnx", "typed_onnx", "engine", "verdict", "manifest", "image", "publication")
NOT_SETTINGS = ("source_base", REVISION)  # parameters of a step that no person sets


class AssetPartition(NamedTuple):
    """One partition of one asset."""

    asset: str  # "engine"
    key: str  # "tiny__l40s__fp8__tp1"

    def __str__(self) -> str:
        """Also the key of its partition of `settings`."""
        return f"{self.asset}:{self.key}"


@dataclass(frozen=True, kw_only=True)
class Lineage:
    """Where one partition comes from."""

    step: str  # the last of its steps; "" for what no step makes
    upstream: tuple[AssetPartition, ...]  # of assets
    sources: Mapping[AssetPartition, str]  # of source assets, each with its data version as it is now
    settings: Mapping[str, Any]  # all that decides its own steps besides: the data version of its settings is over this


@dataclass(frozen=True, kw_only=True)
class Stale:
    """Why a partition is to be built: the words for a person, with the step that each is of, and their causes."""

    reasons: Mapping[str, Cause]  # "export/tiny: params.source_digest changed"

    @property
    def causes(self) -> frozenset[Cause]:
        return frozenset(self.reasons.values())


def lineage(graph: Graph) -> dict[AssetPartition, Lineage]:
    """Every partition that this graph has steps for, each after those it comes from."""
    lineages: dict[AssetPartition, Lineage] = {}
    closures = _closures(graph)

    def add(asset: str, key: str, step: str, upstream: tuple[AssetPartition, ...]) -> AssetPartition:
        partition = AssetPartition(asset, key)
        if partition not in lineages:
            covered = frozenset().union(*(closures[lineages[up].step] for up in upstream))
            own = [graph.steps[name] for name in sorted(closures[step] - covered)]
            lineages[partition] = _lineage(partition, step, upstream, own, {s.id: _settings(s) for s in own})
        return partition

    def add_row(plan: RowPlan) -> AssetPartition | None:
        if plan.verdict is None:
            return None
        assert plan.typed is not None
        assert plan.engine is not None
        model, typed = plan.row.model.name, graph.steps[plan.typed.step]
        onnx: tuple[AssetPartition, ...] = (add("fp32_onnx", model, f"export/{model}", ()),)
        if typed.stage == "quantize":
            onnx = (*onnx, add("typed_onnx", typed.subject, typed.id, onnx))
        engine = add("engine", plan.row.name, plan.engine.step, onnx)
        return add("verdict", plan.row.name, plan.verdict.step, (*onnx, engine))

    for model in graph.models:
        verdicts = tuple(verdict for plan in graph.of(model) if (verdict := add_row(plan)) is not None)
        if verdicts:
            lineages |= _shipped(graph, model, verdicts)
    return lineages


def _closures(graph: Graph) -> dict[str, frozenset[str]]:
    """Each step with all it takes from; "" has none."""
    closures: dict[str, frozenset[str]] = {"": frozenset()}
    for step in graph.steps.values():
        closures[step.id] = frozenset({step.id}).union(*(closures[ref.step] for ref in step.inputs.values()))
    return closures


def _shipped(graph: Graph, model: Model, verdicts: tuple[AssetPartition, ...]) -> dict[AssetPartition, Lineage]:
    """A model's manifest, its image where it has runtimes, and its publication."""
    rows = {plan.row.name: {"sku": asdict(plan.row.sku), "refusal": plan.refusal} for plan in graph.of(model)}
    last = AssetPartition("manifest", model.name)
    packaged = {"rows": rows, "release": model.release, "served_name": model.served_name}
    lineages = {last: _lineage(last, "", verdicts, (), packaged)}
    if model.runtimes:
        image = AssetPartition("image", model.name)
        contained = {"runtimes": model.runtimes, "containers": runtime_sources(model.runtimes)}
        lineages[image] = _lineage(image, "", (last,), (), contained)
        last = image
    publication = AssetPartition("publication", model.name)
    lineages[publication] = _lineage(publication, "", (last,), (), {})
    return lineages


def _lineage(
    partition: AssetPartition,
    step: str,
    upstream: tuple[AssetPartition, ...],
    own: Collection[Step],
    settings: Mapping[str, Any],
) -> Lineage:
    sources = {source: version for one in own for source, version in _sources(one)}
    sources[AssetPartition(SETTINGS, str(partition))] = key_of(settings)
    return Lineage(step=step, upstream=upstream, sources=sources, settings=settings)


def _sources(step: Step) -> Iterator[tuple[AssetPartition, str]]:
    """What a step depends on that no step makes: the model's files, a part of the toolchain ("tensorrt@h100")."""
    if REVISION in step.params:
        yield AssetPartition(MODEL_REVISION, step.params["model"]), str(step.params[REVISION])
    if step.toolchain:
        part = str(step.params["compiler"]) if step.stage == "compile" else step.stage
        versions = ", ".join(f"{name} {version}" for name, version in sorted(step.toolchain.items()))
        yield AssetPartition(TOOLCHAIN, f"{part}@{step.worker}" if step.worker else part), versions


def _settings(step: Step) -> dict[str, Any]:
    params = {name: value for name, value in step.params.items() if name not in NOT_SETTINGS}
    return {"params": params, "code": dict(step.code)}


def runtime_sources(runtimes: tuple[str, ...], containers: Path = CONTAINERS) -> dict[str, str]:
    """What the runtime bases are made from, by digest: the base image's pin and packages, wheels, the server."""
    files = [containers / "images.lock", containers / "base.sh", *sorted((containers / "bin").iterdir())]
    files += [path for name in runtimes for path in sorted((containers / name).rglob("*"))]
    digests = {path.relative_to(containers).as_posix(): file_digest(path) for path in files if path.is_file()}
    return {**digests, "serving": digest("serving")}


def source_versions(lineages: Mapping[AssetPartition, Lineage]) -> dict[str, dict[str, str]]:
    """The data version of every partition of every source asset, as it is now."""
    versions: dict[str, dict[str, str]] = {MODEL_REVISION: {}, TOOLCHAIN: {}, SETTINGS: {}}
    for entry in lineages.values():
        for (asset, key), version in entry.sources.items():
            versions[asset][key] = version
    return versions


def origins(lineages: Mapping[AssetPartition, Lineage], source: str) -> dict[AssetPartition, frozenset[str]]:
    """The partitions of a source asset that each partition comes from, directly or through other assets."""
    reached: dict[AssetPartition, frozenset[str]] = {}
    for partition, entry in lineages.items():
        own = frozenset(key for asset, key in entry.sources if asset == source)
        reached[partition] = own.union(*(reached[up] for up in entry.upstream))
    return reached


def stale_partitions(
    plan: Plan,
    lineages: Mapping[AssetPartition, Lineage],
    unpublished: Mapping[str, str] = MappingProxyType({}),
) -> dict[AssetPartition, Stale]:
    """Every partition that the plan would build, with the reasons at the root: its own steps', or those upstream.

    unpublished: why a model's release is not what was published last (pipelines.publish.last_published).
    """
    of_step: dict[str, dict[str, Cause]] = {"": {}}
    for step in plan.graph.steps.values():
        of_step[step.id] = {words: cause for ref in step.inputs.values() for words, cause in of_step[ref.step].items()}
        of_step[step.id] |= {f"{step.id}: {reason.words}": reason.cause for reason in plan.states[step.id].own}
    stale: dict[AssetPartition, Stale] = {}
    for partition, entry in lineages.items():
        reasons = dict(of_step[entry.step])
        for upstream in entry.upstream:
            reasons |= stale[upstream].reasons if upstream in stale else {}
        if partition.asset == "publication" and partition.key in unpublished:
            reasons[f"publish/{partition.key}: {unpublished[partition.key]}"] = Cause.UNPUBLISHED
        if reasons:
            stale[partition] = Stale(reasons=reasons)
    return stale
