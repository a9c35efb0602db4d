"""The Celery application of a worker: executes the runs of its queues, each by one worker at a time.

Celery gives a task again when its worker does not confirm it in time, also while that worker is still at it. So each
run is claimed (pipelines.store.claims): one that is being executed is put back, one whose worker is gone is reported as
failed, and Dagster's run retries start it anew. https://docs.dagster.io/deployment/execution/run-launchers
"""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from celery import Celery, Task
from dagster_celery.make_app import make_app
from dagster_celery.tasks import create_execute_job_task

from pipelines.store.claims import claimed, held

# After so long a task that nobody confirmed is given to another worker.
VISIBILITY_S = int(os.environ.get("ENGINERY_VISIBILITY_S", "120"))
RETRY_AFTER_S = 15
RUN_ID = "pipeline_run_id"  # in the message that dagster-celery's launcher sends


def worker_app(broker: str, store: Path) -> Celery:
    app = make_app({"broker": broker, "backend": broker, "config_source": {}})
    app.conf.update(
        task_acks_late=True,  # confirmed when done, so that a killed worker's task is not lost
        task_reject_on_worker_lost=True,
        worker_prefetch_multiplier=1,
        broker_connection_retry_on_startup=True,
        broker_transport_options={"visibility_timeout": VISIBILITY_S},
        worker_hijack_root_logger=False,
    )

    class ClaimedRun(Task):  # type: ignore[misc]
        """Dagster's own task, executed by the one worker that holds the claim of its run."""

        def __call__(self, execute_job_args_packed: Mapping[str, Any]) -> Any:
            claim = store / "claims" / f"run-{execute_job_args_packed[RUN_ID]}"
            if held(claim):
                raise self.retry(countdown=RETRY_AFTER_S)
            with claimed(claim):
                return super().__call__(execute_job_args_packed)

    create_execute_job_task(app, base=ClaimedRun, max_retries=None)
    return app


app = worker_app(
    os.environ.get("ENGINERY_BROKER", "redis://localhost:6379/0"), Path(os.environ.get("ENGINERY_STORE", ".store"))
)
