"""From a matrix to dist/: run the stale steps, then package, image and report each model."""

from __future__ import annotations

from pipelines.build.build_model import image_or_context, package_model, write_report
from pipelines.build.executor import Progress, run
from pipelines.build.project import Project
from pipelines.build.result import BuildResult, ModelResult
from pipelines.errors import EngineryError
from pipelines.plan.staleness import Plan, ours


def build(
    project: Project,
    plan: Plan,
    *,
    with_images: bool = True,
    base: str | None = None,
    repository: str | None = None,
    progress: Progress | None = None,
) -> BuildResult:
    """Bring every row of a plan up to date and write dist/<model> for each of its models."""
    progress = progress or Progress()
    with project.store.locked():
        for step_id in sorted(plan.forced):
            project.store.force(plan.graph.steps[step_id].stage, plan.graph.steps[step_id].subject)
        steps = run(ours(plan), project.store, jobs=project.jobs, progress=progress)
        errors = {step_id: step.error for step_id, step in steps.items() if step.error is not None}
        built = plan.after({step_id: step.record for step_id, step in steps.items()}, project.store)
        models = []
        for model in plan.graph.models:
            try:
                result = package_model(project, built, model.name, errors)
                if with_images:
                    progress.log(f"images of {model.name}")
                    result = image_or_context(project, result, base, repository)
                write_report(project, built, result)
            except EngineryError as error:
                folder = project.dist / model.name
                result = ModelResult(model=model, folder=folder, error=str(error), exit_code=error.exit_code)
            models.append(result)
    return BuildResult(steps=steps, models=tuple(models))
