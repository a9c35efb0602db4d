"""Where stage outputs live: blobs by digest, a record per cache key, a pointer to the latest record of each subject."""

from __future__ import annotations

import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import msgspec

from pipelines.errors import StoreError
from pipelines.store.files import canonical, file_digest, write_atomically


class Blob(msgspec.Struct, frozen=True, kw_only=True):
    """Bytes in the store."""

    digest: str  # "sha256:" + 64 hex digits
    size_bytes: int


class Record(msgspec.Struct, frozen=True, kw_only=True):
    """What one step made, and everything its key was computed from: one file in steps/."""

    key: str  # 64 hex digits over the key's inputs
    stage: str
    subject: str
    key_inputs: Mapping[str, Any] = msgspec.field(name="ingredients")
    outputs: Mapping[str, Blob]
    facts: Mapping[str, Any]
    duration_s: float
    peak_rss_bytes: int


class Store:
    """A folder of blobs and records. Builders hold it alone, or together if they claim their steps (`locked`)."""

    def __init__(self, root: Path) -> None:
        self.root = root.absolute()
        self._blobs = self.root / "blobs" / "sha256"
        self._steps = self.root / "steps"
        self._latest = self.root / "latest"
        self._generations = self.root / "generations"

    # Blobs

    def path(self, digest: str) -> Path:
        algorithm, _, hexadecimal = digest.partition(":")
        if algorithm != "sha256" or len(hexadecimal) != 64:
            raise StoreError(f"{digest!r} is not a digest of this store; expected 'sha256:' and 64 hex digits")
        return self._blobs / hexadecimal[:2] / hexadecimal

    def has(self, blob: Blob) -> bool:
        """Whether the blob is there with its full size. Its bytes are hashed when they are used (`verified`)."""
        try:
            return self.path(blob.digest).stat().st_size == blob.size_bytes
        except FileNotFoundError:
            return False

    def put(self, source: Path) -> Blob:
        """Move a file into the store. The file at `source` is gone afterwards."""
        digest = file_digest(source)
        target = self.path(digest)
        blob = Blob(digest=digest, size_bytes=source.stat().st_size)
        if self.has(blob):
            source.unlink()
            return blob
        target.parent.mkdir(parents=True, exist_ok=True)
        with source.open("rb") as file:
            os.fsync(file.fileno())
        source.chmod(0o444)
        source.replace(target)
        return blob

    def put_bytes(self, content: bytes) -> Blob:
        with self.workspace() as folder:
            (folder / "bytes").write_bytes(content)
            return self.put(folder / "bytes")

    def verified(self, blob: Blob) -> Path:
        """The path of a blob, after its bytes were hashed. A damaged blob is set aside, so that it is built again."""
        path = self.path(blob.digest)
        if not path.exists():
            raise StoreError(f"{path} is missing; run the build again to make it anew")
        digest = file_digest(path)
        if digest != blob.digest:
            aside = path.with_suffix(".damaged")
            path.replace(aside)
            raise StoreError(f"{path} holds {digest}: moved to {aside.name}; run the build again to make it anew")
        return path

    @contextmanager
    def workspace(self) -> Iterator[Path]:
        """An empty folder on the store's own file system, removed afterwards."""
        parent = self.root / "tmp"
        parent.mkdir(parents=True, exist_ok=True)
        folder = Path(tempfile.mkdtemp(dir=parent))
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    # Records

    def record(self, key: str) -> Record | None:
        """The record of a key, if it is there and all its blobs are."""
        record = self._read(self._steps / f"{key}.json")
        if record is None or not all(self.has(blob) for blob in record.outputs.values()):
            return None
        return record

    def records(self) -> list[Record]:
        """Every record that can be read, whether or not its blobs are there."""
        records = []
        for path in sorted(self._steps.glob("*.json")):
            with suppress(StoreError):
                records.append(self._read(path))
        return [record for record in records if record is not None]

    def write_record(self, record: Record) -> Record:
        """Write a record and return the one that stands: the first complete record of a key is never replaced.

        So a builder that was taken for lost and finishes after all gets the record that another builder wrote.
        """
        self.root.mkdir(parents=True, exist_ok=True)
        with (self.root / "records.lock").open("a") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            standing = self.record(record.key)
            if standing is None:
                write_atomically(self._steps / f"{record.key}.json", canonical(msgspec.to_builtins(record)))
        self.point(standing or record)
        return standing or record

    def generation(self, stage: str, subject: str) -> int:
        """How often a step was forced: part of its key from 1 on.

        A forced step has another key. No record is removed, and a builder that was still at work on the old key
        writes a record that no longer counts.
        """
        try:
            return int((self._generations / stage / subject).read_text())
        except FileNotFoundError:
            return 0

    def force(self, stage: str, subject: str) -> None:
        """Have a step built once more, though nothing changed."""
        self.root.mkdir(parents=True, exist_ok=True)
        with (self.root / "records.lock").open("a") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            generation = self.generation(stage, subject) + 1
            write_atomically(self._generations / stage / subject, str(generation).encode())

    def point(self, record: Record) -> None:
        """Make this the latest record of its subject. `plan` compares with it to say why a step is stale."""
        pointer = self._latest / record.stage / record.subject
        if not pointer.exists() or pointer.read_text() != record.key:
            write_atomically(pointer, record.key.encode())

    def latest(self, stage: str, subject: str) -> Record | None:
        pointer = self._latest / stage / subject
        try:
            return self._read(self._steps / f"{pointer.read_text()}.json")
        except FileNotFoundError:
            return None

    def _read(self, path: Path) -> Record | None:
        try:
            return msgspec.json.decode(path.read_bytes(), type=Record)
        except FileNotFoundError:
            return None
        except msgspec.DecodeError as error:
            raise StoreError(f"{path} is not readable ({error}); remove it and run the build again") from error

    @contextmanager
    def locked(self, *, wait: bool = False, shared: bool = False) -> Iterator[None]:
        """Hold the store for one builder. The kernel frees the lock when the process dies.

        wait: wait for another builder; else raise StoreError. shared: hold it together with other builders that do so
        and claim each step (pipelines.store.claims).
        """
        self.root.mkdir(parents=True, exist_ok=True)
        with (self.root / "lock").open("w") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | (0 if wait and not shared else fcntl.LOCK_NB))
            except BlockingIOError as error:
                if not shared:
                    raise StoreError(
                        f"another build holds {self.root}; wait for it, or give this one its own --store"
                    ) from error
            else:
                shutil.rmtree(self.root / "tmp", ignore_errors=True)
            if shared:
                fcntl.flock(file, fcntl.LOCK_SH | (0 if wait else fcntl.LOCK_NB))
            yield
