"""From judged rows to dist/MODEL: package a model, build its images, write its report."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import msgspec

from pipelines.matrix.compilers import COMPILERS
from pipelines.build.project import Project
from pipelines.build.result import ModelResult
from pipelines.errors import ImageContextOnly, PackageError
from pipelines.gate import verdict as verdicts
from pipelines.image import build as image
from pipelines.image import package, package_file
from pipelines.image.package import Candidate
from pipelines.image.package_file import Packaged
from pipelines.matrix.values import Model
from pipelines.plan.graph import RowPlan
from pipelines.plan.staleness import Plan, not_here
from pipelines.plan.toolchain import NOT_INSTALLED, version_of
from pipelines.release import oci_artifact
from pipelines.report import collect, page
from pipelines.store.files import key_of, write_atomically
from pipelines.store.store import Store
from serving.contract import manifest
from serving.tasks.table import TASKS



def package_model(
    project: Project, plan: Plan, name: str, errors: Mapping[str, str] | None = None
) -> ModelResult:
    """Write what ships of a model, from what the store has for its rows. Nothing is written when nothing changed.

    errors: step -> why it failed, where this build ran it. Raises PackageError where no row has an engine.
    """
    rows = [row for row in plan.graph.rows if row.row.model.name == name]
    model, folder = rows[0].row.model, project.dist / name
    unbuilt = {row.row.name: why for row in rows if (why := missing(row, plan, errors or {})) is not None}
    candidates = [_candidate(row, plan, project.store) for row in rows if row.row.name not in unbuilt]
    if not candidates:
        reasons = "\n".join(f"  {row}: {why}" for row, why in sorted(unbuilt.items()))
        raise PackageError(f"no profile of {name} may ship, none of its rows has an engine here:\n{reasons}")
    exported = plan.states[f"export/{name}"].record
    assert exported is not None  # an engine was made of it
    packaged, reused = package_file.ensure_packaged(
        model,
        candidates,
        {file: project.store.path(exported.outputs[file].digest) for file in package.SHARED},
        folder=folder,
        versions={**bound_versions(candidates), "onnxruntime": version_of("onnxruntime")},
        skus=project.matrix.skus,
        unbuilt=unbuilt,
    )
    return _result(model, folder, packaged, reused=reused)


def packaged_model(project: Project, name: str) -> ModelResult:
    """What dist/<model> has of a model. Raises PackageError where it is not packaged, or no longer whole."""
    folder = project.dist / name
    packaged = package_file.load(folder)
    if packaged is None or not package_file.intact(folder, packaged):
        raise PackageError(f"{folder} is not packaged, or no longer whole: build {name}, or materialize its manifest")
    return _result(project.matrix.models[name], folder, packaged, reused=True)


def _result(model: Model, folder: Path, packaged: Packaged, *, reused: bool) -> ModelResult:
    return ModelResult(
        model=model,
        folder=folder,
        shipped=packaged.shipped,
        left_out=packaged.left_out,
        manifest_digest=packaged.manifest_digest,
        reused=reused,
        notes=packaged.notes,
    )


def missing(row: RowPlan, plan: Plan, errors: Mapping[str, str]) -> str | None:
    """Why a row has no engine with a verdict; None when it has."""
    if row.verdict is None:
        return row.refusal
    if (why := not_here(row, plan.states)) is not None:
        return why
    return None if plan.record(row.verdict) is not None else errors.get(row.verdict.step, "it is not judged yet")


def _candidate(row: RowPlan, plan: Plan, store: Store) -> Candidate:
    """A row that was judged, with its engines in the store and the version of the library that made them."""
    compiled, judged = plan.record(row.engine), plan.record(row.verdict)
    assert row.engine is not None
    assert compiled is not None
    assert judged is not None
    distribution = COMPILERS[row.row.sku.compiler].bound_to
    return Candidate(
        row=row.row,
        engines={
            tower: store.path(compiled.outputs[row.engine.of(tower).output].digest)
            for tower in TASKS[row.row.model.task].towers
        },
        verdict=verdicts.load(store.path(judged.outputs["verdict.json"].digest).read_bytes()),
        version=compiled.key_inputs["toolchain"].get(distribution),
    )


def bound_versions(candidates: Sequence[Candidate]) -> dict[str, str]:
    """Backend -> version: those of this machine, and for backends that it does not have, those of its workers."""
    here = {spec.backend: version_of(spec.bound_to) for spec in COMPILERS.values() if spec.bound_to is not None}
    theirs = {COMPILERS[c.row.sku.compiler].backend: c.version for c in candidates if c.version is not None}
    return {name: theirs.get(name, version) if version == NOT_INSTALLED else version for name, version in here.items()}


def image_or_context(
    project: Project, packaged: ModelResult, base: str | None, repository: str | None = None
) -> ModelResult:
    """The images; where none can be made, a note that says why and where the complete context is."""
    if not packaged.model.runtimes:
        return packaged
    try:
        return image_model(project, packaged, base=base, repository=repository)
    except ImageContextOnly as error:
        return replace(packaged, notes=(*packaged.notes, str(error)))


def image_model(
    project: Project, packaged: ModelResult, *, base: str | None = None, repository: str | None = None
) -> ModelResult:
    """Build a packaged model's images, full and slim, and the artifact that slim ones can fetch their files from.

    repository: where slim images look for files when nothing else is said.
    """
    folder, model = packaged.folder, packaged.model
    images = image.build_images(
        folder, model.runtimes, store=project.store, base=base, kinds=("full", "slim"), repository=repository
    )
    oci_artifact.write(folder)
    shipped = manifest.read(folder / package.ROOT / package.MANIFEST)
    without = image.without_profile(shipped, model.runtimes)
    notes = [f"no {runtime} image of {model.name}: no profile that it can execute" for runtime in without]
    return replace(packaged, images=images, notes=(*packaged.notes, *notes))


def write_report(project: Project, plan: Plan, result: ModelResult) -> None:
    """Write report.html, unless it shows these very facts already: drawing it takes longer than an idle build."""
    facts = collect.collect(
        project.store,
        plan,
        result.model,
        left_out=result.left_out,
        images=result.images,
        manifest_digest=result.manifest_digest,
    )
    path, mark = result.folder / "report.html", f"<!-- facts {key_of(msgspec.to_builtins(facts))} -->\n"
    if not (path.exists() and path.read_text().endswith(mark)):
        write_atomically(path, (page.render(facts) + mark).encode())
