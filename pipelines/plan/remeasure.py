"""Which steps `--remeasure` forces: the measurements of the rows that a person names."""

from __future__ import annotations

from collections.abc import Sequence
from fnmatch import fnmatchcase

from pipelines.errors import MatrixError
from pipelines.plan.graph import Graph, RowPlan


def steps(graph: Graph, globs: Sequence[str] | None) -> frozenset[str]:
    """The measurements of the rows that match one of the globs: all rows for (), none for None. Raises MatrixError.

    The fp32 reference is not measured again: it measures no time. Verdict, manifest and report follow by themselves.
    """
    if globs is None:
        return frozenset()
    globs = globs or ("*",)
    rows_by_glob = {glob: [plan for plan in graph.rows if fnmatchcase(plan.row.name, glob)] for glob in globs}
    problems = []
    for glob, plans in rows_by_glob.items():
        if not plans:
            problems.append(f"--remeasure {glob}: no selected row has such a name; `enginery plan` lists them")
        elif all(not measured_here(plan) for plan in plans):
            reasons = "; ".join(f"{plan.row.name} {why_not(plan)}" for plan in plans)
            problems.append(f"--remeasure {glob}: none of these rows is measured here: {reasons}")
    if problems:
        raise MatrixError(str(graph.matrix.source), problems)
    return frozenset(
        plan.metrics.step for plans in rows_by_glob.values() for plan in plans if plan.metrics and measured_here(plan)
    )


def measured_here(plan: RowPlan) -> bool:
    return plan.metrics is not None and plan.built_by is None


def why_not(plan: RowPlan) -> str:
    return f"is measured by worker {plan.built_by.host}" if plan.built_by is not None else str(plan.refusal)
