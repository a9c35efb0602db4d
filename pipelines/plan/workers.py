"""What the workers of a shared store said of themselves when they started, and which of them a row is built by.

A step's key holds the versions and the hardware of the machine that builds it. A machine that only packages knows those
of the workers from here, and so finds what they built. A registration says what a worker was, not that it is still
there: it makes no row unbuildable that this machine can build.
"""

from __future__ import annotations

import platform
import socket
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import msgspec

from pipelines.matrix.values import Row, Worker, refusal_here
from pipelines.plan.toolchain import DISTRIBUTIONS, NOT_INSTALLED, cpu_model, version_of
from pipelines.store.store import Store, canonical, step_key, write_atomically

FOLDER = "workers"
SHARED = ("export", "quantize")  # stages whose outputs are of no row: laid out as the planning machine would build them


@dataclass(frozen=True, kw_only=True)
class Facts:
    """Everything of a worker that the keys of its steps hold. Equal workers have one registration."""

    worker: Worker
    versions: Mapping[str, str]  # "python" and every distribution of pipelines.plan.toolchain
    cpu_model: str
    serves: tuple[str, ...]  # SKUs

    @property
    def digest(self) -> str:
        return step_key(msgspec.to_builtins(self, order="deterministic"))

    def versions_of(self, part: str) -> dict[str, str]:
        return {name: self.versions.get(name, NOT_INSTALLED) for name in DISTRIBUTIONS[part]}


@dataclass(frozen=True, kw_only=True)
class Registration:
    """A worker as it was when it started."""

    facts: Facts
    host: str
    time: str  # "2026-11-21T15:04:05.123456+00:00"


def here(worker: Worker, serves: Iterable[str]) -> Facts:
    """This machine, as it is now."""
    names = {name for part in DISTRIBUTIONS.values() for name in part}
    versions = {"python": platform.python_version(), **{name: version_of(name) for name in names}}
    return Facts(worker=worker, versions=versions, cpu_model=cpu_model(), serves=tuple(sorted(serves)))


def register(store: Store, facts: Facts) -> None:
    """Say what a worker is, in the store that it shares. The same worker again: only the time is new."""
    said = Registration(facts=facts, host=socket.gethostname(), time=datetime.now(UTC).isoformat())
    data = canonical(msgspec.to_builtins(said, order="deterministic"))
    write_atomically(store.root / FOLDER / f"{facts.digest}.json", data)


def registered(store: Store) -> tuple[Registration, ...]:
    """Every worker that ever registered, the newest first. A file that is not what its name says counts for nothing."""
    found = (_read(path) for path in (store.root / FOLDER).glob("*.json"))
    known = [registration for registration in found if registration is not None]
    return tuple(sorted(known, key=lambda one: (one.time, one.facts.digest), reverse=True))


def _read(path: Path) -> Registration | None:
    try:
        registration = msgspec.json.decode(path.read_bytes(), type=Registration)
    except (OSError, msgspec.DecodeError):  # removed meanwhile, or damaged
        return None
    return registration if registration.facts.digest == path.stem else None


def builders(rows: Iterable[Row], worker: Worker, known: Sequence[Registration]) -> dict[str, Registration]:
    """The rows that are another worker's, by name: those that cannot be built here, or whose GPU is only there.

    Of several workers that serve a SKU the one that registered last counts: it has the versions that are wanted now.
    """
    found = {}
    for row in rows:
        refused = refusal_here(row, worker) is not None
        if not refused and (row.sku.kind == "cpu" or has_gpu(row, worker)):
            continue
        for registration in known:
            other = registration.facts
            able = row.sku.name in other.serves and refusal_here(row, other.worker) is None
            if able and (refused or has_gpu(row, other.worker)):
                found[row.name] = registration
                break
    return found


def has_gpu(row: Row, worker: Worker) -> bool:
    return any(pci_id in row.sku.pci_ids for pci_id in worker.gpu_pci_ids)


def differences(registration: Registration, ours: Facts) -> list[str]:
    """What a worker has in another version than this machine, of what makes the ONNX that engines are compiled from."""
    theirs = registration.facts.versions
    names = ["python", *(name for part in SHARED for name in DISTRIBUTIONS[part])]
    return [
        f"{name} {theirs.get(name)} there, {ours.versions[name]} here"
        for name in dict.fromkeys(names)
        if theirs.get(name) != ours.versions[name]
    ]
