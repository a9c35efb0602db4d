"""From a matrix to dist/: run the stale steps, then package, image and report each model."""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from pipelines.image import build as image, package
from pipelines.release import document, oci_artifact
from pipelines.report import collect, page
from pipelines.matrix import load as matrices
from pipelines.errors import EngineryError, ImageContextOnly, MatrixError, PackageError
from pipelines.plan.graph import Graph, Ref, RowPlan
from pipelines.image.build import ImageResult
from pipelines.matrix.values import Matrix, Model, Worker, refusal_here
from pipelines.image.package import Candidate
from pipelines.plan.staleness import Staleness, not_here, ours, states
from pipelines.build.project import Project
from pipelines.build.result import BuildResult, ModelResult
from pipelines.build.executor import Listener, StepResult, run
from pipelines.plan.layout import graph
from pipelines.store.files import file_digest, key_of, write_atomically
from pipelines.store.store import Store
from pipelines.plan.toolchain import NOT_INSTALLED, version_of
import msgspec
from serving.tasks.table import TASKS

# backend -> the distribution whose version an engine is bound to
BOUND_TO = {"openvino": "openvino", "tensorrt-rtx": "tensorrt-rtx-cu13-bindings", "tensorrt": "tensorrt"}
SUMMARY_VERSION = 2  # of package.json

Say = Callable[[str], None]


def build(
    project: Project,
    steps: Graph,
    *,
    with_images: bool = True,
    base: str | None = None,
    repository: str | None = None,
    again: Collection[str] = (),
    listen: Listener = lambda *_: None,
    say: Say = lambda _: None,
) -> BuildResult:
    """Bring every row of the graph up to date, the steps `again` in any case, and write dist/<model> for each model."""
    with project.store.locked():
        found = states(steps, project.store) if any(p.built_by for p in steps.rows) else {}
        outcomes = run(ours(steps, found), project.store, jobs=project.jobs, listen=listen, again=again)
        errors = {step_id: outcome.error for step_id, outcome in outcomes.items() if outcome.error is not None}
        results = []
        for model in steps.models:
            try:
                result = package_model(project, steps, model.name, errors)
                if with_images:
                    say(f"images of {model.name}")
                    result = image_or_context(project, result, base, repository)
                write_report(project, steps, result)
            except EngineryError as error:
                folder = project.dist / model.name
                result = ModelResult(model=model, folder=folder, error=str(error), exit_code=error.exit_code)
            results.append(result)
    return BuildResult(steps=outcomes, models=tuple(results))


def package_model(project: Project, steps: Graph, name: str, errors: Mapping[str, str] | None = None) -> ModelResult:
    """Write what ships of a model, from what the store has for its rows. Nothing is written when nothing changed."""
    store, plans = project.store, [p for p in steps.rows if p.row.model.name == name]
    model, found = plans[0].row.model, states(steps, project.store)

    def at(ref: Ref) -> Path:
        record = found[ref.step].record
        assert record is not None  # asked only for refs whose step has one
        return store.path(record.outputs[ref.output].digest)

    unbuilt = {p.row.name: why for p in plans if (why := missing(p, found, errors or {}))}
    built = [p for p in plans if p.row.name not in unbuilt and p.engine and p.verdict]
    versions = {backend: version_of(distribution) for backend, distribution in BOUND_TO.items()}
    candidates = [
        Candidate(
            row=p.row,
            engines={tower: at(p.engine.of(tower)) for tower in TASKS[model.task].towers},
            verdict=json.loads(at(p.verdict).read_bytes()),
            version=compiled_with(p, found),
        )
        for p in built
        if p.engine and p.verdict
    ]
    if not built:
        reasons = "\n".join(f"  {row}: {why}" for row, why in sorted(unbuilt.items()))
        raise PackageError(f"no profile of {name} may ship, none of its rows has an engine here:\n{reasons}")
    shared = {file: at(Ref(step=f"export/{name}", output=file)) for file in package.SHARED}
    key = key_of(
        {
            "rows": {c.row.name: package.tags_of(c.row, c.versions(versions), c.size_bytes) for c in candidates},
            "verdicts": {p.row.name: at(p.verdict).name for p in built if p.verdict},
            "shared": {file: path.name for file, path in shared.items()},
            "unbuilt": unbuilt,
            "release": model.release,
            "summary": SUMMARY_VERSION,
        }
    )
    folder = project.dist / name
    state = folder / "package.json"
    known = json.loads(state.read_text()) if state.exists() else {}
    if known.get("key") == key and intact(folder, known):
        return ModelResult(model=model, folder=folder, reused=True, **_read(known))
    made = package.package(model, candidates, shared, versions, folder, unbuilt=unbuilt)
    summary = document.write_summary(
        made,
        candidates,
        project.matrix,
        model,
        key=key,
        versions={**used(versions, candidates), "onnxruntime": version_of("onnxruntime")},
    )
    return ModelResult(model=model, folder=folder, **_read(summary))


def packaged_model(project: Project, name: str) -> ModelResult:
    """What dist/<model> has of a model. Raises PackageError where it is not packaged, or no longer whole."""
    folder = project.dist / name
    state = folder / "package.json"
    summary = json.loads(state.read_text()) if state.exists() else None
    if summary is None or not intact(folder, summary):
        raise PackageError(f"{folder} is not packaged, or no longer whole: build {name}, or materialize its manifest")
    return ModelResult(model=project.matrix.models[name], folder=folder, reused=True, **_read(summary))


def compiled_with(plan: RowPlan, found: Mapping[str, Staleness]) -> str | None:
    """The version of the library that made a row's engine, wherever that was; None where engines are bound to none."""
    backend = package.EXECUTION[plan.row.sku.compiler][0]
    record = found[plan.engine.step].record if plan.engine else None
    return record.key_inputs["toolchain"].get(BOUND_TO.get(backend)) if record else None


def used(versions: Mapping[str, str], candidates: Sequence[Candidate]) -> dict[str, str]:
    """Backend -> version: those of this machine, and for backends that it does not have, those of its workers."""
    theirs = {package.EXECUTION[c.row.sku.compiler][0]: c.version for c in candidates if c.version is not None}
    return {name: theirs.get(name, here) if here == NOT_INSTALLED else here for name, here in versions.items()}


def _read(summary: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "manifest_digest": summary["manifest_digest"],
        "shipped": tuple(summary["shipped"]),
        "left_out": {row: tuple(why) for row, why in summary["left_out"].items()},
        "notes": tuple(summary["notes"]),
    }


def intact(folder: Path, summary: Mapping[str, Any]) -> bool:
    """Whether dist/<model> still holds what was packaged: the manifest by digest, its files by size."""
    manifest, root = folder / "model_manifest.yaml", folder / package.ROOT
    if not manifest.exists() or file_digest(manifest) != summary["manifest_digest"]:
        return False
    if not (root / package.MANIFEST).exists() or file_digest(root / package.MANIFEST) != summary["manifest_digest"]:
        return False
    return all((root / uri).exists() and (root / uri).stat().st_size == size for uri, size in summary["files"].items())


def missing(plan: RowPlan, found: Mapping[str, Staleness], errors: Mapping[str, str]) -> str | None:
    """Why a row has no engine with a verdict; None when it has."""
    if plan.verdict is None or (why := not_here(plan, found)) is not None:
        return plan.refusal if plan.verdict is None else why
    if found[plan.verdict.step].record is not None:
        return None
    return errors.get(plan.verdict.step, "it is not judged yet")


def image_or_context(
    project: Project, packaged: ModelResult, base: str | None, repository: str | None = None
) -> ModelResult:
    """The images; where none can be made, a note that says why and where the complete context is."""
    if not packaged.model.runtimes:
        return packaged
    try:
        return image_model(project, packaged, base=base, repository=repository)
    except ImageContextOnly as error:
        (packaged.folder / "images.json").unlink(missing_ok=True)  # of an earlier build: it is not of this manifest
        return replace(packaged, notes=(*packaged.notes, str(error)))


def image_model(
    project: Project, packaged: ModelResult, *, base: str | None = None, repository: str | None = None
) -> ModelResult:
    """Build a packaged model's images, full and slim, and the artifact that slim ones can fetch their files from.

    repository: where slim images look for files when nothing else is said. images.json lists them beside the manifest.
    """
    folder = packaged.folder
    made = image.build_images(
        folder,
        packaged.model.runtimes,
        store=project.store,
        base=base,
        kinds=("full", "slim"),
        repository=repository,
    )
    write_images(folder, made)
    oci_artifact.write(folder)
    notes = tuple(dict.fromkeys(note for result in made for note in result.notes))
    return replace(packaged, images=made, notes=(*packaged.notes, *notes))


def write_images(folder: Path, made: Sequence[ImageResult]) -> None:
    """Write images.json: what was built of this manifest."""
    listed = [
        {
            "reference": result.reference,
            "runtime": result.runtime,
            "kind": result.kind,
            "base": result.base,
            "digest": result.manifest_digest,
            "image_id": result.image_id,
            "size_bytes": result.size_bytes,
            "layers": [{"what": layer.what, **msgspec.structs.asdict(layer.blob)} for layer in result.layers],
            "loaded": result.loaded is None,
            "not_loaded_because": result.loaded,
        }
        for result in made
    ]
    write_atomically(folder / "images.json", json.dumps(listed, indent=1).encode())


def write_report(project: Project, steps: Graph, result: ModelResult) -> None:
    """Write report.html, unless it shows these very facts already: drawing it takes longer than an idle build."""
    facts = collect.collect(
        project.store,
        steps,
        result.model,
        left_out=result.left_out or {},
        images=result.images,
        manifest_digest=result.manifest_digest,
    )
    path, mark = result.folder / "report.html", f"<!-- facts {key_of(asdict(facts))} -->\n"
    if not (path.exists() and path.read_text().endswith(mark)):
        write_atomically(path, (page.render(facts) + mark).encode())
