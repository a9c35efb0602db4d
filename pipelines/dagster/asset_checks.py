"""Verdicts as Dagster asset checks. The verdict itself is a file that `package` reads; this only shows it.

https://docs.dagster.io/guides/test/asset-checks
"""

from collections.abc import Mapping
from typing import Any

import dagster as dg

GATE = dg.AssetCheckSpec(
    "gate", asset="verdict", description="Accuracy, realised precision and speed against the matrix's thresholds"
)


def gate_result(row: str, verdict: Mapping[str, Any]) -> dg.AssetCheckResult:
    return dg.AssetCheckResult(
        asset_key="verdict",
        check_name="gate",
        passed=bool(verdict["passed"]),
        severity=dg.AssetCheckSeverity.WARN,  # the row is left out of the manifest; the run goes on
        description="; ".join(verdict["reasons"]) or "every threshold is met",
        metadata={"row": row, "judged_on": str(verdict["judged_on"]), "checks": checks_table(verdict)},
    )


def checks_table(verdict: Mapping[str, Any]) -> dg.MarkdownMetadataValue:
    """A line for each check of a verdict."""
    lines = ["| check | value | threshold | passed |", "|---|---|---|---|"]
    for check in verdict["checks"]:
        value, threshold = (("–" if check[part] is None else check[part]) for part in ("value", "threshold"))
        passed = {True: "yes", False: "no", None: "not judged"}[check["passed"]]
        lines.append(f"| {check['name']} | {value} | {threshold} | {passed} |")
    return dg.MetadataValue.md("\n".join(lines))
