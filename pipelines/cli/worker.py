"""Start a worker: check that this machine has the SKUs it will serve, then run Celery on their queues."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from pipelines.dagster import placement
from pipelines.errors import WorkerError
from pipelines.matrix import load as matrices
from pipelines.plan import workers
from pipelines.store.store import Store


def exec_worker(matrix: Path, *, store: Path, dist: Path, skus: Sequence[str], home: bool, broker: str) -> NoReturn:
    """Replace this process by a Celery worker that executes one run at a time. Raises WorkerError with every reason."""
    if not skus and not home:
        raise WorkerError("a worker serves something: name its SKUs with --sku, or --home for exports and manifests")
    if "DAGSTER_HOME" not in os.environ:
        raise WorkerError("DAGSTER_HOME is not set: a worker writes its runs to the instance that the daemon uses")
    machine = workers.this_machine()
    placement.verify(matrices.load(matrix), skus, machine)
    if skus:
        workers.register(Store(store), workers.spec_here(machine, skus))
    environ = {
        **os.environ,
        "ENGINERY_MATRIX": str(matrix.absolute()),
        "ENGINERY_STORE": str(store.absolute()),
        "ENGINERY_DIST": str(dist.absolute()),
        "ENGINERY_BROKER": broker,
        placement.WORKER_SKUS: ",".join(skus),
    }
    queues = [*([placement.DEFAULT_QUEUE] if home else []), *(placement.queue(sku) for sku in skus)]
    name = f"{'-'.join(['home', *skus] if home else skus)}-{os.getpid()}@%h"
    command = [
        "-A",
        "pipelines.dagster.celery_app",
        "worker",
        "-Q",
        ",".join(queues),
        "-n",
        name,
        "-c",
        "1",
        "-l",
        "INFO",
    ]
    os.execve(sys.executable, [sys.executable, "-m", "celery", *command, "--without-mingle"], environ)  # noqa: S606
