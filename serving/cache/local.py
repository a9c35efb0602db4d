"""The cache folder: where a file's bytes lie in it, how one comes to be there whole or not at all, and who may write.

Layout, below NIM_CACHE_PATH: blobs/blake3/<64 hex> is a whole file, put there by one rename; beside it,
.<64 hex>.part is the beginning of one. It is the layout of an image and of a repository: a filled cache can be either.
"""

from __future__ import annotations

import errno
import fcntl
import logging
import os
import stat
from pathlib import Path
from typing import Any

from blake3 import blake3

from serving.cache.sources.base import SourceError
from serving.cache.sources.file import open_path
from serving.contract.profile import ProfileFile

log = logging.getLogger(__name__)

CHUNK_BYTES = 1 << 18


class NotWritable(Exception):
    """Why nothing can be written to a cache folder, and what would help. It holds for every file."""


def blob(cache_path: Path, file: ProfileFile) -> Path:
    """Where the bytes of a file lie in a cache, if it has them."""
    algorithm, _, digest = file.checksum.partition(":")
    return cache_path / "blobs" / algorithm / digest


def problem(path: Path, file: ProfileFile, within: Path | None = None) -> str | None:
    """Why the bytes at a path are not a file's; None: they are. Reads them once, in small pieces."""
    try:
        with os.fdopen(open_path(path, within), "rb", buffering=0) as stream:
            size = os.fstat(stream.fileno()).st_size
            if file.size_bytes not in (-1, size):
                return f"has {size} bytes where the manifest says {file.size_bytes}"
            return wrong_digest(_hash(stream), file)
    except SourceError as error:
        return str(error)
    except OSError as error:
        return f"cannot be read: {error.strerror}"


def wrong_digest(hasher: Any, file: ProfileFile) -> str | None:
    """Why a finished hash is not the file's."""
    actual = f"blake3:{hasher.hexdigest()}"
    return None if actual == file.checksum else f"hashes to {actual} where the manifest says {file.checksum}"


class Part:
    """The beginning of one file, held by one process: it grows, and is placed or dropped. Close it in the end."""

    def __init__(self, target: Path, descriptor: int) -> None:
        self._target = target
        self._stream = os.fdopen(descriptor, "r+b", buffering=0)  # __exit__ closes it
        self.hasher = _hash(self._stream)
        self.size_bytes = self._stream.tell()

    def __enter__(self) -> Part:
        return self

    def __exit__(self, *_: object) -> None:
        self._stream.close()  # gives up the lock as well

    def write(self, data: bytes) -> None:
        left = memoryview(data)
        while left:
            left = left[self._stream.write(left) :]
        self.hasher.update(data)
        self.size_bytes += len(data)

    def clear(self) -> None:
        self._stream.seek(0)
        self._stream.truncate()
        self.hasher, self.size_bytes = blake3(), 0

    def place(self) -> None:
        """Under its own name, on the disk: after a power cut there is the whole file or none."""
        os.fsync(self._stream.fileno())
        _part(self._target).replace(self._target)
        folder = os.open(self._target.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)

    def drop(self) -> None:
        _part(self._target).unlink(missing_ok=True)


def claim(target: Path, file: ProfileFile) -> Part | None:
    """The part of a file, with what an earlier process left of it. None: the whole file is there.

    Waits while another process holds it: the lock is that process's own, and ends with it, however it ends. A damaged
    file in the part's way is removed. Raises NotWritable.
    """
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        while True:
            descriptor = os.open(_part(target), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o644)
            try:
                _lock(descriptor, target)
                if not _is_at(descriptor, _part(target)):  # another process placed or dropped it while this one waited
                    os.close(descriptor)
                    continue
                if target.exists():
                    if problem(target, file) is None:
                        _part(target).unlink(missing_ok=True)
                        os.close(descriptor)
                        return None
                    target.unlink()
                return Part(target, descriptor)
            except BaseException:
                _close(descriptor)
                raise
    except OSError as error:
        raise NotWritable(why_not(target, error)) from None


def why_not(path: Path, error: OSError) -> str:
    """An error of writing below a folder, with what `id` and `stat` would say about it."""
    folder = next((f for f in (path, *path.parents) if f.is_dir()), Path("/"))
    groups = ",".join(map(str, os.getgroups()))
    try:
        info = folder.stat()
        owner = f"{stat.filemode(info.st_mode)} owner {info.st_uid}:{info.st_gid}"
        if os.statvfs(folder).f_flag & os.ST_RDONLY:
            owner += ", a read-only file system"
    except OSError:
        owner = "which cannot be looked at"
    remedies = {
        errno.ENOSPC: "free some space or use a larger volume: what is there already is kept, and the download goes on",
        errno.EDQUOT: "raise the quota: what is there already is kept, and the download goes on",
        errno.ENOLCK: "its file system has no locks (mount NFS with them), so two processes cannot share it",
        errno.ENOTSUP: "its file system has no locks, so two processes cannot share it; use another volume",
    }
    remedy = remedies.get(error.errno or 0, "mount it writable for this user (fsGroup, chown), or mount a filled one")
    return (
        f"{path.parent} cannot be written: {error.strerror}; this is uid={os.geteuid()} gid={os.getegid()} "
        f"groups={groups}; {folder} is {owner}; {remedy}"
    )


def begun_bytes(target: Path) -> int:
    """How much of a file an earlier process left."""
    try:
        return _part(target).stat().st_size
    except OSError:
        return 0


def _part(target: Path) -> Path:
    return target.with_name(f".{target.name}.part")


def _lock(descriptor: int, target: Path) -> None:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        log.info("Another process downloads %s; waiting for it", target.name)
        fcntl.flock(descriptor, fcntl.LOCK_EX)


def _is_at(descriptor: int, path: Path) -> bool:
    mine = os.fstat(descriptor)
    try:
        there = os.lstat(path)
    except FileNotFoundError:
        return False
    return (mine.st_dev, mine.st_ino) == (there.st_dev, there.st_ino)


def _close(descriptor: int) -> None:
    try:
        os.close(descriptor)
    except OSError:  # a Part has closed it
        return


def _hash(stream: Any) -> Any:
    """The hash of a stream from here to its end, where it then stands."""
    hasher = blake3(max_threads=blake3.AUTO)
    buffer = bytearray(32 * CHUNK_BYTES)
    view = memoryview(buffer)
    while count := stream.readinto(buffer):
        hasher.update(view[:count])
    return hasher
