"""A project: a matrix, the store and dist folder that its builds use, and the graph of its rows on this machine."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path

from pipelines.errors import MatrixError
from pipelines.matrix import load as matrices
from pipelines.matrix.values import Matrix, Row, Worker, refusal_here
from pipelines.plan import workers
from pipelines.plan.graph import Graph
from pipelines.plan.layout import graph
from pipelines.plan.remeasure import steps as remeasured
from pipelines.plan.sources import Sources
from pipelines.plan.staleness import Plan, not_here, plan
from pipelines.store.store import Store


@dataclass(frozen=True, kw_only=True)
class Project:
    """A matrix, and where its results go."""

    matrix: Matrix
    store: Store
    dist: Path
    jobs: int
    worker: Worker

    @classmethod
    def open(cls, matrix: Path, *, store: Path, dist: Path = Path("dist"), jobs: int = 2) -> Project:
        """Read the matrix, or raise MatrixError before anything is written."""
        return cls(matrix=matrices.load(matrix), store=Store(store), dist=dist, jobs=jobs, worker=workers.this_machine())

    def plan(self, select: Sequence[str] = (), remeasure: Sequence[str] | None = None) -> Plan:
        """What must run for the rows that match one of the globs (all rows without any), and why.

        remeasure: the rows to measure once more, as pipelines.plan.remeasure takes them. Raises MatrixError.
        """
        rows, sources = self.rows(select), Sources(self.matrix)
        builders = workers.builders(rows, self.worker, workers.registered(self.store))
        laid_out = plan(graph(self.matrix, rows, self.worker, builders, sources), self.store)
        # A worker that has the GPU judges on the engine itself. But it may be gone: nobody waits for it.
        unfinished = {row.row.name for row in laid_out.graph.rows if row.built_by and not_here(row, laid_out.states)}
        here = {row.name for row in rows if row.name in unfinished and refusal_here(row, self.worker) is None}
        if here:
            builders = {name: record for name, record in builders.items() if name not in here}
            laid_out = plan(graph(self.matrix, rows, self.worker, builders, sources), self.store)
        forced = remeasured(laid_out.graph, remeasure)
        return plan(laid_out.graph, self.store, forced) if forced else laid_out

    def graph(self, select: Sequence[str] = ()) -> Graph:
        """The steps of a plan alone."""
        return self.plan(select).graph

    def rows(self, select: Sequence[str]) -> list[Row]:
        """The rows that match one of the globs, all without any. Raises MatrixError for a glob that matches none."""
        rows = [r for r in self.matrix.rows if not select or any(fnmatchcase(r.name, glob) for glob in select)]
        idle = [glob for glob in select if not any(fnmatchcase(row.name, glob) for row in self.matrix.rows)]
        if idle or not rows:
            examples = ", ".join(row.name for row in self.matrix.rows[:3])
            problems = [f"--select {glob}: no row has such a name; rows are named like {examples}" for glob in idle]
            raise MatrixError(str(self.matrix.source), problems or ["the matrix builds no rows; add to `build`"])
        return rows
