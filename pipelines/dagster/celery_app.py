"""The Celery application of a worker: executes runs that came through its queues, each by one worker at a time.

Celery gives a task again when its worker does not confirm it in time, also while that worker is still at it. So each
run is claimed (pipelines.store.claims): one that is being executed is put back, one whose worker is gone is reported as
failed, and Dagster's run retries start it anew.
"""

import os
from pathlib import Path
from typing import Any

from celery import Celery
from dagster import DagsterInstance
from dagster._cli.api import _execute_run_command_body
from dagster._grpc.types import ExecuteRunArgs
from dagster._serdes import unpack_value
from dagster_celery.config import TASK_EXECUTE_JOB_NAME
from dagster_celery.make_app import make_app

from pipelines.store.claims import claimed, held

# After so long a task that nobody confirmed is given to another worker.
VISIBILITY_S = int(os.environ.get("ENGINERY_VISIBILITY_S", "120"))
AGAIN_S = 15


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

    @app.task(bind=True, name=TASK_EXECUTE_JOB_NAME, track_started=True, max_retries=None)  # type: ignore[untyped-decorator]
    def execute(self: Any, execute_job_args_packed: Any) -> int:
        args = unpack_value(execute_job_args_packed, as_type=ExecuteRunArgs)
        claim = store / "claims" / f"run-{args.run_id}"
        if held(claim):
            raise self.retry(countdown=AGAIN_S)
        with claimed(claim), DagsterInstance.get() as instance:
            return _execute_run_command_body(
                instance=instance, run_id=args.run_id, write_stream_fn=lambda _: None, set_exit_code_on_failure=True
            )

    return app


app = worker_app(
    os.environ.get("ENGINERY_BROKER", "redis://localhost:6379/0"), Path(os.environ.get("ENGINERY_STORE", ".store"))
)
