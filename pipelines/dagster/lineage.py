"""What each partition of each asset is made from, and which are due: the plan in the words of Dagster's asset graph.

Dagster knows versions, not key_inputs. So that it calls stale exactly what `enginery plan` would build, each
partition has upstream partitions whose versions together are its key_inputs: other assets, the model's revision, the
parts of the toolchain, and the settings of its own steps. This module imports no dagster.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from types import MappingProxyType
from typing import Any

from pipelines.image.runtime import CONTAINERS
from pipelines.plan.graph import Graph, RowPlan, Step
from pipelines.plan.staleness import REVISION, Cause, Staleness, states
from pipelines.plan.toolchain import serving_code
from pipelines.stage import VERSIONS
from pipelines.store.files import file_digest, key_of
from pipelines.store.store import Store

VERSION_CHARS = 16  # of a version that is only compared with itself
UNHASHED = ("source_base", REVISION)  # parameters that are no setting
# The stages whose steps belong to an asset's own partition. Their versions are the asset's code version.
STAGES = {
    "fp32_onnx": ("texts", "export"),
    "typed_onnx": ("quantize",),
    "engine": ("compile",),
    "verdict": ("measure", "judge"),
    "manifest": ("package",),
    "image": ("image",),
    "publication": ("publish",),
}

Cell = tuple[str, str]  # an asset and its partition: ("engine", "tiny__l40s__fp8__tp1")


@dataclass(frozen=True, kw_only=True)
class Lineage:
    """Where one partition comes from."""

    step: str  # the last of its steps; "" for what no step makes
    upstream: tuple[Cell, ...]
    revision: bool  # of the model's files, directly
    parts: Mapping[str, Mapping[str, str]]  # the parts of the toolchain its own steps use: {"openvino": {…: "2026.4"}}
    settings: Mapping[str, Any]  # everything else that decides its own steps

    @property
    def settings_version(self) -> str:
        return key_of(self.settings)


@dataclass(frozen=True, kw_only=True)
class Due:
    """A partition that is to be built, and why."""

    reasons: Mapping[str, Cause]  # in words, with the step that each is of

    @property
    def why(self) -> tuple[str, ...]:
        return tuple(self.reasons)

    @property
    def causes(self) -> frozenset[Cause]:
        return frozenset(self.reasons.values())


def code_version(asset: str) -> str:
    return ", ".join(f"{stage} {VERSIONS.get(stage, 1)}" for stage in STAGES[asset])


def part_of(step: Step) -> str:
    """Which part of the toolchain a step uses, and whose: "openvino", "export", "tensorrt@h100"."""
    part = str(step.params["compiler"]) if step.stage == "compile" else step.stage
    return f"{part}@{step.worker}" if step.worker else part


def lineage(graph: Graph) -> dict[Cell, Lineage]:
    """Every partition that this graph has steps for, each after those it comes from."""
    found: dict[Cell, Lineage] = {}
    closure = cache(lambda step: frozenset(graph.closure([step]).steps))

    def cell(asset: str, key: str, step: str, upstream: tuple[Cell, ...]) -> Cell:
        if (asset, key) not in found:
            covered = frozenset().union(*(closure(found[up].step) for up in upstream))
            own = [graph.steps[name] for name in sorted(closure(step) - covered)]
            found[asset, key] = Lineage(
                step=step,
                upstream=upstream,
                revision=any(REVISION in s.params for s in own),
                parts={part_of(s): dict(s.toolchain) for s in own if s.toolchain},
                settings={s.id: _settings(s, STAGES[asset]) for s in own},
            )
        return asset, key

    def engine_of(plan: RowPlan) -> tuple[Cell, ...]:
        model, typed, engine = plan.row.model.name, plan.typed, plan.engine
        assert typed is not None
        assert engine is not None
        onnx = cell("fp32_onnx", model, f"export/{model}", ())
        if typed.step.startswith("quantize/"):
            name = typed.step.removeprefix("quantize/")
            sources: tuple[Cell, ...] = (onnx, cell("typed_onnx", name, typed.step, (onnx,)))
        else:
            sources = (onnx,)
        return (*sources, cell("engine", plan.row.name, engine.step, sources))

    for model in graph.models:
        verdicts = []
        for plan in graph.of(model):
            if plan.verdict is not None:
                verdicts.append(cell("verdict", plan.row.name, plan.verdict.step, engine_of(plan)))
        if not verdicts:
            continue
        rows = {plan.row.name: {"sku": asdict(plan.row.sku), "refusal": plan.refusal} for plan in graph.of(model)}
        packaged = {"rows": rows, "release": model.release, "served_name": model.served_name}
        found["manifest", model.name] = _without_step(tuple(verdicts), packaged)
        shipped: Cell = ("manifest", model.name)
        if model.runtimes:
            contained = {"runtimes": model.runtimes, "containers": runtime_sources(model.runtimes)}
            found["image", model.name] = _without_step((shipped,), contained)
            shipped = ("image", model.name)
        found["publication", model.name] = _without_step((shipped,), {})
    return found


def _settings(step: Step, stages: tuple[str, ...]) -> dict[str, Any]:
    settings: dict[str, Any] = {"params": {k: v for k, v in step.params.items() if k not in UNHASHED}}
    if step.stage not in stages:  # the baseline's: not in this asset's code version
        settings["version"] = VERSIONS.get(step.stage, 1)
    return settings


def _without_step(upstream: tuple[Cell, ...], settings: Mapping[str, Any]) -> Lineage:
    return Lineage(step="", upstream=upstream, revision=False, parts={}, settings=settings)


def runtime_sources(runtimes: tuple[str, ...], containers: Path = CONTAINERS) -> dict[str, str]:
    """What the runtime bases are made from, by digest: the base image's pin and packages, wheels, the server."""
    files = [containers / "images.lock", containers / "base.sh", *sorted((containers / "bin").iterdir())]
    files += [path for name in runtimes for path in sorted((containers / name).rglob("*"))]
    digests = {path.relative_to(containers).as_posix(): file_digest(path) for path in files if path.is_file()}
    return {**digests, "serving": serving_code(".")}


def revisions(graph: Graph) -> dict[str, str]:
    """The revision of each model, as its export knows it."""
    steps = {model.name: graph.steps.get(f"export/{model.name}") for model in graph.models}
    return {name: str(step.params[REVISION]) for name, step in steps.items() if step is not None}


def toolchains(cells: Mapping[Cell, Lineage]) -> dict[str, dict[str, str]]:
    """The versions of each part of the toolchain that some partition uses."""
    return {part: dict(versions) for found in cells.values() for part, versions in found.parts.items()}


def watched(graph: Graph, cells: Mapping[Cell, Lineage], cause: Cause) -> dict[Cell, str]:
    """For each partition, the version of all that it comes from and that this cause watches, near or far upstream."""
    known, sources = revisions(graph), dict[Cell, dict[str, Any]]()
    for cell, made in cells.items():
        own: Mapping[str, Any] = made.parts if cause is Cause.TOOLCHAIN else {}
        if cause is Cause.MODEL and made.revision:
            own = {cell[1]: known[cell[1]]}
        sources[cell] = {name: found for up in made.upstream for name, found in sources[up].items()} | dict(own)
    return {cell: key_of(found)[:VERSION_CHARS] for cell, found in sources.items()}


def due(
    graph: Graph,
    store: Store,
    cells: Mapping[Cell, Lineage] | None = None,
    unpublished: Mapping[str, str] = MappingProxyType({}),
) -> dict[Cell, Due]:
    """Every partition that is stale in the store, with the reasons at its root.

    unpublished: why a model's release is not what was published last (pipelines.publish.last_published).
    """
    found = states(graph, store)
    cells = lineage(graph) if cells is None else cells
    closure = cache(lambda step: frozenset(graph.closure([step]).steps) if step else frozenset())
    stale: dict[Cell, Due] = {}
    for cell, made in cells.items():
        covered = frozenset().union(*(closure(cells[up].step) for up in made.upstream))
        reasons: dict[str, Cause] = {}
        for step in sorted(closure(made.step) - covered):
            reasons |= _reasons(step, found[step])
        for up in made.upstream:
            if up in stale:
                reasons |= stale[up].reasons
        if cell[0] == "publication" and cell[1] in unpublished:
            reasons[f"publish/{cell[1]}: {unpublished[cell[1]]}"] = Cause.UNPUBLISHED
        if reasons:
            stale[cell] = Due(reasons=reasons)
    return stale


def _reasons(step: str, state: Staleness) -> dict[str, Cause]:
    """Why a step is stale by itself. What another step made of the model's files counts as the model's own change."""
    return {
        f"{step}: {reason.words}": Cause.MODEL if reason.cause is Cause.INPUTS else reason.cause for reason in state.own
    }
