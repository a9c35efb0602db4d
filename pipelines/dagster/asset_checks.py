"""Verdicts as Dagster asset checks. The verdict itself is a file that `package` reads; this only shows it.

https://docs.dagster.io/guides/test/asset-checks
"""

import dagster as dg

from pipelines.gate.verdict import Verdict

GATE = dg.AssetCheckSpec(
    "gate", asset="verdict", description="Accuracy, realised precision and speed against the matrix's thresholds"
)


def gate_result(row: str, verdict: Verdict) -> dg.AssetCheckResult:
    return dg.AssetCheckResult(
        asset_key="verdict",
        check_name="gate",
        passed=verdict.passed,
        severity=dg.AssetCheckSeverity.WARN,  # the row is left out of the manifest; the run goes on
        description="; ".join(verdict.reasons) or "every threshold is met",
        metadata={"row": row, "evaluated": verdict.evaluated, "checks": checks_table(verdict)},
    )


def checks_table(verdict: Verdict) -> dg.MarkdownMetadataValue:
    """A line for each check of a verdict."""
    lines = ["| check | value | threshold | passed |", "|---|---|---|---|"]
    for check in verdict.checks:
        value, threshold = (("–" if figure is None else figure) for figure in (check.value, check.threshold))
        passed = {True: "yes", False: "no", None: "not judged"}[check.passed]
        lines.append(f"| {check.name} | {value} | {threshold} | {passed} |")
    return dg.MetadataValue.md("\n".join(lines))
