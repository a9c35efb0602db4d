"""A project: a matrix, the store and dist folder that its builds use, and the graph of its rows on this machine."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path

from pipelines.errors import MatrixError
from pipelines.matrix import load as matrices
from pipelines.matrix.values import Matrix, Worker, refusal_here
from pipelines.plan import workers
from pipelines.plan.graph import Graph
from pipelines.plan.layout import graph
from pipelines.plan.staleness import not_here, states
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

    def graph(self, select: Sequence[str] = ()) -> Graph:
        """The steps of the rows that match one of the globs (all rows without any)."""
        rows = [r for r in self.matrix.rows if not select or any(fnmatchcase(r.name, glob) for glob in select)]
        idle = [glob for glob in select if not any(fnmatchcase(row.name, glob) for row in self.matrix.rows)]
        if idle or not rows:
            known = ", ".join(row.name for row in self.matrix.rows[:3])
            problems = [f"--select {glob}: no row has such a name; rows are named like {known}" for glob in idle]
            raise MatrixError(str(self.matrix.source), problems or ["the matrix builds no rows; add to `build`"])
        theirs = workers.builders(rows, self.worker, workers.registered(self.store))
        laid_out = graph(self.matrix, rows, self.worker, theirs)
        if not theirs:
            return laid_out
        # A worker that has the GPU judges better than this machine can, but nobody waits for one that may be gone.
        found = states(laid_out, self.store)
        unfinished = {p.row.name for p in laid_out.rows if p.built_by is not None and not_here(p, found)}
        here = {row.name for row in rows if row.name in unfinished and refusal_here(row, self.worker) is None}
        theirs = {name: record for name, record in theirs.items() if name not in here}
        return graph(self.matrix, rows, self.worker, theirs) if here else laid_out
