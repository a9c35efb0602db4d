"""The factory as a Dagster resource: which matrix, which store, which dist. What a stage does does not belong here."""

from pathlib import Path

import dagster as dg

from pipelines.build import ModelResult, Workshop, image_model, package_model, write_report
from pipelines.graph import Graph
from pipelines.run import Outcome, run


class Factory(dg.ConfigurableResource):  # type: ignore[type-arg]
    """One matrix, one store and one dist folder, shared with the command line: both see what the other has built."""

    matrix: str = "sku_matrix.yaml"
    store: str = ".store"
    dist: str = "dist"
    jobs: int = 2

    def workshop(self) -> Workshop:
        return Workshop.open(Path(self.matrix), store=Path(self.store), dist=Path(self.dist), jobs=self.jobs)

    def bring(self, context: dg.AssetExecutionContext, graph: Graph, *steps: str) -> dict[str, Outcome]:
        """Bring these steps, and what they take from, up to date; raise Failure with the reason of one that failed."""
        workshop = self.workshop()
        with workshop.store.locked(wait=True):
            outcomes = run(graph.closure(steps), workshop.store, jobs=self.jobs)
        for step_id in steps:
            error = outcomes[step_id].error
            if error is not None:
                raise dg.Failure(description=error, allow_retries=False)
        for outcome in outcomes.values():
            context.log.info("%s %s", "reused" if outcome.reused else "built", outcome.step.id)
        return outcomes

    def package(self, graph: Graph, model: str) -> ModelResult:
        """Package what the store has of a model, and write its report."""
        workshop = self.workshop()
        with workshop.store.locked(wait=True):
            made = package_model(workshop, graph, model)
            write_report(workshop, graph, made)
        return made

    def images(self, graph: Graph, model: str) -> ModelResult:
        """Build a model's images, and write its report with them."""
        workshop = self.workshop()
        with workshop.store.locked(wait=True):
            made = image_model(workshop, package_model(workshop, graph, model))
            write_report(workshop, graph, made)
        return made
