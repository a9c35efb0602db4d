"""Send each run to where its row belongs: Dagster's queue of runs, with the tags of `placement` put on each.

Partitions cannot carry tags to a daemon (it knows their names only), but a row's name spells its SKU. Named in
dagster.yaml as `run_coordinator`; its settings are those of QueuedRunCoordinator.
"""

import json
import os
from pathlib import Path

from dagster import DagsterRun
from dagster._core.run_coordinator import QueuedRunCoordinator, SubmitRunContext
from dagster._core.storage.tags import PARTITION_NAME_TAG

from pipelines.dagster.placement import pod, queue_of, sku_of
from pipelines.matrix import load as matrices

QUEUE_TAG = "dagster-celery/queue"
SKU_TAG = "enginery/sku"
POD_TAG = "dagster-k8s/config"


class SkuRunCoordinator(QueuedRunCoordinator):
    """A queue of runs that knows what hardware each is for."""

    def submit_run(self, context: SubmitRunContext) -> DagsterRun:
        run = context.dagster_run
        partition = run.tags.get(PARTITION_NAME_TAG)
        tags = {QUEUE_TAG: queue_of(partition)}
        if (sku := sku_of(partition)) is not None:
            tags |= {SKU_TAG: sku, POD_TAG: self._pod(str(partition))}
        self._instance.add_run_tags(run.run_id, tags)
        return super().submit_run(context)

    def _pod(self, name: str) -> str:
        matrix = matrices.load(Path(os.environ.get("ENGINERY_MATRIX", "sku_matrix.yaml")))
        return json.dumps(next((pod(row) for row in matrix.rows if row.name == name), {}))
