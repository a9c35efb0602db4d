"""Send each run to where its row belongs: Dagster's queue of runs, with the tags of `placement` put on each.

Partitions cannot carry tags to a daemon (it knows their names only), but a row's name holds its SKU. Named in
dagster.yaml as `run_coordinator`; its settings are those of QueuedRunCoordinator.
https://docs.dagster.io/deployment/execution/run-coordinators
"""

import json
import os
from functools import lru_cache
from pathlib import Path

import dagster as dg

from pipelines.dagster.placement import pod, queue_of, sku_of
from pipelines.matrix import load as matrices

PARTITION_TAG = "dagster/partition"  # on every run of one partition
QUEUE_TAG = "dagster-celery/queue"
SKU_TAG = "enginery/sku"
POD_TAG = "dagster-k8s/config"


class SkuRunCoordinator(dg.QueuedRunCoordinator):
    """A queue of runs that knows what hardware each is for."""

    def submit_run(self, context: dg.SubmitRunContext) -> dg.DagsterRun:
        run = context.dagster_run
        partition = run.tags.get(PARTITION_TAG)
        tags = {QUEUE_TAG: queue_of(partition)}
        if partition is not None and (sku := sku_of(partition)) is not None:
            matrix = Path(os.environ.get("ENGINERY_MATRIX", "sku_matrix.yaml"))
            tags |= {SKU_TAG: sku, POD_TAG: pods(matrix, matrix.stat().st_mtime_ns).get(partition, "{}")}
        self._instance.add_run_tags(run.run_id, tags)
        return super().submit_run(context)


@lru_cache(maxsize=1)
def pods(matrix: Path, mtime_ns: int) -> dict[str, str]:
    """The pod of each row, as the tag says it. A matrix is read once while it does not change, not for each run."""
    return {row.name: json.dumps(pod(row)) for row in matrices.load(matrix).rows}
