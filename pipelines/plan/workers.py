"""What builds: this machine, and the workers of a shared store as they registered when they started.

A step's key holds the versions and the hardware of the machine that builds it. A machine that only packages reads those
of the workers from here, and so finds what they built. A registration says what a worker was, not that it is still
there: it makes no row unbuildable that this machine can build.
"""

from __future__ import annotations

import socket
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import msgspec

from pipelines.matrix.compilers import COMPILERS
from pipelines.matrix.values import Row, Worker, refusal_here
from pipelines.plan.code import CODE, digests
from pipelines.plan.toolchain import DISTRIBUTIONS, NOT_INSTALLED, cpu_model, versions
from pipelines.store.files import canonical, key_of, write_atomically
from pipelines.store.store import Store
from serving.choice import hardware

FOLDER = "workers"
# Stages whose outputs are of no row: they are laid out as the planning machine would build them.
SHARED = ("texts", "export", "quantize")


@dataclass(frozen=True, kw_only=True)
class WorkerSpec:
    """Everything of a worker that the keys of its steps hold. Equal workers have one record."""

    worker: Worker
    versions: Mapping[str, str]  # every distribution of pipelines.plan.toolchain
    code: Mapping[str, str]  # every package of pipelines.plan.code -> digest
    cpu_model: str
    skus: tuple[str, ...]  # whose rows it builds

    @property
    def digest(self) -> str:
        return key_of(msgspec.to_builtins(self, order="deterministic"))

    def versions_of(self, part: str) -> dict[str, str]:
        """The toolchain of a stage, or of a compiler."""
        return {name: self.versions.get(name, NOT_INSTALLED) for name in DISTRIBUTIONS[part]}

    def code_of(self, stage: str) -> dict[str, str]:
        return {part: self.code.get(part, NOT_INSTALLED) for part in CODE[stage]}


@dataclass(frozen=True, kw_only=True)
class WorkerRecord:
    """A worker as it was when it started."""

    spec: WorkerSpec
    host: str
    time: str  # "2026-11-21T15:04:05.123456+00:00"


def this_machine() -> Worker:
    """The server's view of the hardware, in the matrix's words."""
    machine = hardware.detect()
    return Worker(
        cpu_arch=machine.cpu_arch,
        cpu_features=machine.cpu_features,
        compilers=frozenset(name for name, spec in COMPILERS.items() if spec.backend in machine.runtimes),
        gpu_pci_ids=tuple(gpu.pci_device for gpu in machine.gpus),
    )


def spec_here(worker: Worker, skus: Iterable[str] = ()) -> WorkerSpec:
    """This machine as a worker that builds the rows of these SKUs: the versions and the code that it has now."""
    return WorkerSpec(
        worker=worker, versions=versions(), code=digests(), cpu_model=cpu_model(), skus=tuple(sorted(skus))
    )


def register(store: Store, spec: WorkerSpec) -> None:
    """Record a worker in the store that it shares. The same worker again: only the time is new."""
    record = WorkerRecord(spec=spec, host=socket.gethostname(), time=datetime.now(UTC).isoformat())
    content = canonical(msgspec.to_builtins(record, order="deterministic"))
    write_atomically(store.root / FOLDER / f"{spec.digest}.json", content)


def registered(store: Store) -> tuple[WorkerRecord, ...]:
    """Every worker that ever registered, the newest first. A file whose digest is not its name counts for nothing."""
    files = (_read(path) for path in (store.root / FOLDER).glob("*.json"))
    records = [record for record in files if record is not None]
    return tuple(sorted(records, key=lambda record: (record.time, record.spec.digest), reverse=True))


def _read(path: Path) -> WorkerRecord | None:
    try:
        record = msgspec.json.decode(path.read_bytes(), type=WorkerRecord)
    except (OSError, msgspec.DecodeError):  # removed meanwhile, damaged, or of another version of enginery
        return None
    return record if record.spec.digest == path.stem else None


def builders(rows: Iterable[Row], worker: Worker, records: Sequence[WorkerRecord]) -> dict[str, WorkerRecord]:
    """The rows that are another worker's, by name: those that cannot be built here, or whose GPU is only there.

    Of several workers that serve a SKU the one that registered last counts: it has the versions that are wanted now.
    """
    by_row = {}
    for row in rows:
        refused = refusal_here(row, worker) is not None
        if not refused and (row.sku.kind == "cpu" or has_gpu(row, worker)):
            continue
        for record in records:
            other = record.spec
            able = row.sku.name in other.skus and refusal_here(row, other.worker) is None
            if able and (refused or has_gpu(row, other.worker)):
                by_row[row.name] = record
                break
    return by_row


def has_gpu(row: Row, worker: Worker) -> bool:
    return any(pci_id in row.sku.pci_ids for pci_id in worker.gpu_pci_ids)


def differences(record: WorkerRecord, ours: WorkerSpec) -> list[str]:
    """What a worker has other than this machine, of what makes the ONNX that engines are compiled from."""
    theirs = record.spec
    names = dict.fromkeys(name for stage in SHARED for name in DISTRIBUTIONS[stage])
    parts = dict.fromkeys(part for stage in SHARED for part in CODE[stage])
    return [
        f"{name} {theirs.versions.get(name)} there, {ours.versions[name]} here"
        for name in names
        if theirs.versions.get(name) != ours.versions[name]
    ] + [f"{part} is other code there" for part in parts if theirs.code.get(part) != ours.code[part]]
