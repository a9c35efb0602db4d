"""The factory as a Dagster resource: which matrix, which store, which dist. What a stage does does not belong here.

https://docs.dagster.io/guides/build/external-resources
"""

import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import dagster as dg

from pipelines.build.build_model import image_model, package_model, packaged_model, write_report
from pipelines.build.executor import run
from pipelines.build.project import Project
from pipelines.build.result import ModelResult
from pipelines.dagster.lineage import AssetPartition, Lineage, Stale, lineage, stale_partitions
from pipelines.dagster.placement import WORKER_SKUS, refusal
from pipelines.errors import EngineryError
from pipelines.plan import workers
from pipelines.plan.graph import Ref, RowPlan
from pipelines.plan.staleness import Plan, not_here
from pipelines.publish import last_published
from pipelines.publish.last_published import MODEL, NO_DESTINATION, Destination
from pipelines.publish.to_bucket import Result
from pipelines.store.store import Record, Store

# A stage's process was killed, a hub did not answer: tried again. A stage that says why it cannot is not.
RETRIES = 2
RETRY_AFTER_S = 20.0


@dataclass(frozen=True, kw_only=True)
class FactoryPlan:
    """What the matrix, the models, the installed versions and the store say at one moment; each is read once."""

    project: Project
    plan: Plan

    @cached_property
    def lineages(self) -> Mapping[AssetPartition, Lineage]:
        return lineage(self.plan.graph)


class Factory(dg.ConfigurableResource):  # type: ignore[type-arg]
    """One matrix, one store and one dist folder, shared with the command line: both see what the other has built."""

    matrix: str = "sku_matrix.yaml"
    store: str = ".store"
    dist: str = "dist"
    jobs: int = 2
    base: str | None = None  # what images start from; None: as `enginery build` does
    repository: str | None = None  # where slim images fetch their files, "s3://models/prod"; None: as `enginery build`
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
            repository=environ.get("ENGINERY_REPOSITORY") or None,
            publish_to=environ.get("ENGINERY_PUBLISH_TO") or None,
            publish_unguarded=environ.get("ENGINERY_PUBLISH_UNGUARDED") == "1",
            publish_replace=environ.get("ENGINERY_PUBLISH_REPLACE") == "1",
        )

    def project(self) -> Project:
        return Project.open(Path(self.matrix), store=Path(self.store), dist=Path(self.dist), jobs=self.jobs)

    def plan(self, model: str | None = None) -> FactoryPlan:
        """The steps as they are now, not as they were when the definitions were loaded; of one model, or of all."""
        project = self.project()
        return FactoryPlan(project=project, plan=project.plan([f"{model}__*"] if model is not None else []))

    def stale(self, current: FactoryPlan) -> dict[AssetPartition, Stale]:
        """Every partition that is to be built; where there is a destination, also what is not published there."""
        unpublished: Mapping[str, str] = {}
        if self.destination is not None:
            dist, store = current.project.dist, current.project.store
            models = [model.name for model in current.plan.graph.models]
            unpublished = last_published.unpublished(dist, self.destination, store, models)
        return stale_partitions(current.plan, current.lineages, unpublished)

    def build_step(self, context: dg.AssetExecutionContext, step: str) -> Record:
        """Bring a step of the run's model, and what it takes from, up to date."""
        with self.as_failure(context):
            return self._build(context, self.plan(model_of(context)), step)

    def build_row(self, context: dg.AssetExecutionContext, output: Callable[[RowPlan], Ref | None]) -> Record | None:
        """Bring the step up to date that makes this output of the run's row; None where another machine builds it.

        Raises Failure if this is a worker, and not one for this row.
        """
        with self.as_failure(context):
            current = self.plan(model_of(context))
            row = next(row for row in current.plan.graph.rows if row.row.name == context.partition_key)
            machine, store = workers.this_machine(), current.project.store
            if (reason := refusal(row.row, machine, os.environ)) is not None:
                raise dg.Failure(description=reason, allow_retries=False)
            if WORKER_SKUS in os.environ:  # a pod is a worker for one run, and a queue's worker may have been upgraded
                workers.register(store, workers.spec_here(machine, os.environ[WORKER_SKUS].split(",")))
            elsewhere = not_here(row, current.plan.states)
            ref = output(row)
            if elsewhere is not None or ref is None:
                context.log.warning("%s is skipped: %s", row.row.name, elsewhere)
                return None
            return self._build(context, current, ref.step)

    def _build(self, context: dg.AssetExecutionContext, current: FactoryPlan, step: str) -> Record:
        store = current.project.store
        with store.locked(wait=True, shared=True):
            results = run(current.plan.graph.closure([step]), store, jobs=self.jobs, shared=True)
        for result in results.values():
            if result.record is not None:
                context.log.info("%s %s", "reused" if result.reused else "built", result.step.id)
        record = results[step].record
        if record is None:
            error = EngineryError(str(results[step].error))
            error.transient = results[step].transient
            raise error
        return record

    def package(self, context: dg.AssetExecutionContext) -> ModelResult:
        """Package what the store has of the run's model, and write its report."""
        with self.as_failure(context), Store(Path(self.store)).locked(wait=True):
            current = self.plan(context.partition_key)
            packaged = package_model(current.project, current.plan, context.partition_key)
            write_report(current.project, current.plan, packaged)
            return packaged

    def images(self, context: dg.AssetExecutionContext) -> ModelResult:
        """Build the images of the manifest that is packaged of the run's model, and write its report with them."""
        with self.as_failure(context), Store(Path(self.store)).locked(wait=True):
            current, model = self.plan(context.partition_key), context.partition_key
            packaged = packaged_model(current.project, model)
            repository = self.repository.replace(MODEL, model) if self.repository is not None else None
            with_images = image_model(current.project, packaged, base=self.base, repository=repository)
            write_report(current.project, current.plan, with_images)
            return with_images

    @property
    def destination(self) -> Destination | None:
        if self.publish_to is None:
            return None
        return Destination(to=self.publish_to, guarded=not self.publish_unguarded, replace=self.publish_replace)

    def publish(self, context: dg.AssetExecutionContext) -> Result:
        """Publish what is packaged of a model. The store is not held: what is sent is hashed as it is read."""
        if self.destination is None:
            raise dg.Failure(description=NO_DESTINATION, allow_retries=False)
        folder, store = Path(self.dist) / context.partition_key, Store(Path(self.store))
        with self.as_failure(context):
            return last_published.publish(folder, self.destination, store, log=context.log.info)

    @contextmanager
    def as_failure(self, context: dg.AssetExecutionContext) -> Iterator[None]:
        """An error that a person can act on becomes a Failure with its words; it is tried again only if it may pass."""
        try:
            yield
        except EngineryError as error:
            failure = dg.Failure(description=str(error), allow_retries=False)
            if error.transient:
                context.log.warning("%s", error)
                raise dg.RetryRequested(RETRIES, self.retry_after_s) from failure
            raise failure from error


def model_of(context: dg.AssetExecutionContext) -> str:
    """The model of a run's partition, which is a row, a typed ONNX ("tiny__fp16") or a model: each begins with it."""
    return str(context.partition_key).partition("__")[0]
