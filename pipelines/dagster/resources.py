"""The factory as a Dagster resource: which matrix, which store, which dist. What a stage does does not belong here."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import dagster as dg

from pipelines.build.build_matrix import image_model, package_model, write_report
from pipelines.build.executor import StepResult, run
from pipelines.build.project import Project
from pipelines.build.result import ModelResult
from pipelines.errors import EngineryError
from pipelines.plan.graph import Graph
from pipelines.publish import last_published
from pipelines.publish.last_published import NO_DESTINATION, Destination
from pipelines.publish.to_bucket import Result

# A stage's process was killed, a hub did not answer: tried again. A stage that says why it cannot is not.
RETRIES = 2
RETRY_AFTER_S = 20.0


class Factory(dg.ConfigurableResource):  # type: ignore[type-arg]
    """One matrix, one store and one dist folder, shared with the command line: both see what the other has built."""

    matrix: str = "sku_matrix.yaml"
    store: str = ".store"
    dist: str = "dist"
    jobs: int = 2
    base: str | None = None  # what images start from; None: as `enginery build` does
    publish_to: str | None = None  # "s3://models/prod", "oci://registry.example/models/{model}"; None: nowhere
    publish_unguarded: bool = False  # also to an S3 server without conditional writes
    publish_replace: bool = False  # move a registry's tag that names another release
    retry_after_s: float = RETRY_AFTER_S

    @classmethod
    def from_environment(cls, environ: Mapping[str, str]) -> "Factory":
        """The factory that `enginery ui`, `enginery worker` and deploy/ name in their variables."""
        return cls(
            matrix=environ.get("ENGINERY_MATRIX", "sku_matrix.yaml"),
            store=environ.get("ENGINERY_STORE", ".store"),
            dist=environ.get("ENGINERY_DIST", "dist"),
            base=environ.get("ENGINERY_BASE") or None,
            publish_to=environ.get("ENGINERY_PUBLISH_TO") or None,
            publish_unguarded=environ.get("ENGINERY_PUBLISH_UNGUARDED") == "1",
            publish_replace=environ.get("ENGINERY_PUBLISH_REPLACE") == "1",
        )

    def project(self) -> Project:
        return Project.open(Path(self.matrix), store=Path(self.store), dist=Path(self.dist), jobs=self.jobs)

    def graph(self) -> Graph:
        """The steps as the matrix, the models and the installed versions are now, not as they were at loading."""
        return self.project().graph()

    def ensure_built(self, context: dg.AssetExecutionContext, graph: Graph, *steps: str) -> dict[str, StepResult]:
        """Bring these steps, and what they take from, up to date.

        Raises Failure with the reason of one that failed, or RetryRequested if the failure may pass by itself.
        """
        project = self.project()
        with project.store.locked(wait=True, shared=True):
            outcomes = run(graph.closure(steps), project.store, jobs=self.jobs, shared=True)
        for outcome in outcomes.values():
            if outcome.record is not None:
                context.log.info("%s %s", "reused" if outcome.reused else "built", outcome.step.id)
        for step_id in steps:
            outcome = outcomes[step_id]
            if outcome.error is None:
                continue
            failure = dg.Failure(description=outcome.error, allow_retries=False)
            if outcome.transient:
                context.log.warning("%s", outcome.error)
                raise dg.RetryRequested(RETRIES, self.retry_after_s) from failure
            raise failure
        return outcomes

    def package(self, graph: Graph, model: str) -> ModelResult:
        """Package what the store has of a model, and write its report."""
        project = self.project()
        with project.store.locked(wait=True), told():
            made = package_model(project, graph, model)
            write_report(project, graph, made)
        return made

    def images(self, graph: Graph, model: str) -> ModelResult:
        """Build a model's images, and write its report with them."""
        project = self.project()
        with project.store.locked(wait=True), told():
            made = image_model(project, package_model(project, graph, model), base=self.base)
            write_report(project, graph, made)
        return made

    @property
    def destination(self) -> Destination | None:
        if self.publish_to is None:
            return None
        return Destination(to=self.publish_to, guarded=not self.publish_unguarded, replace=self.publish_replace)

    def publish(self, context: dg.AssetExecutionContext, model: str) -> Result:
        """Publish what is packaged of a model. The store is not held: what is sent is hashed as it is read."""
        if self.destination is None:
            raise dg.Failure(description=NO_DESTINATION, allow_retries=False)
        project = self.project()
        with told(self.retry_after_s):
            return last_published.publish(project.dist / model, self.destination, project.store, log=context.log.info)

    def unpublished(self, graph: Graph) -> dict[str, str]:
        """Which models' releases are not what was published last, and why; none if there is no destination."""
        if self.destination is None:
            return {}
        project = self.project()
        return last_published.unpublished(
            project.dist, self.destination, project.store, [model.name for model in graph.models]
        )


@contextmanager
def told(retry_after_s: float = RETRY_AFTER_S) -> Iterator[None]:
    """An error that a person can act on becomes a Failure with its words; it is tried again only if it may pass."""
    try:
        yield
    except EngineryError as error:
        failure = dg.Failure(description=str(error), allow_retries=False)
        if error.transient:
            raise dg.RetryRequested(RETRIES, retry_after_s) from failure
        raise failure from error
