"""Read files of this machine: which paths may be opened, and why one cannot be read."""

from __future__ import annotations

import os
import stat
from pathlib import Path
from urllib.parse import unquote, urlsplit

from serving.cache.sources.base import Location, Opened, SourceError


class FileSource:
    """`file:///path`: a file of this machine."""

    def open(self, location: Location, offset: int, version: str) -> Opened:
        within = None if location.within is None else path_of(location.within)
        descriptor = open_path(path_of(location.uri), within)
        size = os.fstat(descriptor).st_size
        start = offset if offset <= size else 0
        os.lseek(descriptor, start, os.SEEK_SET)
        stream = os.fdopen(descriptor, "rb", buffering=0)  # its reader closes it

        def read(num_bytes: int) -> bytes:
            try:
                return stream.read(num_bytes) or b""
            except OSError as error:
                raise SourceError(f"cannot be read: {error.strerror}") from None

        return Opened(read=read, close=stream.close, offset=start, size_bytes=size)


def read(path: Path, size_bytes: int, within: Path | None = None) -> bytes:
    """A regular file's bytes; size_bytes < 0 means that nobody said how long it is. Raises SourceError."""
    descriptor = open_path(path, within)
    with os.fdopen(descriptor, "rb", buffering=0) as stream:
        actual = os.fstat(descriptor).st_size
        if 0 <= size_bytes != actual:
            raise SourceError(f"has {actual} bytes where the manifest says {size_bytes}")
        try:
            return stream.readall()
        except OSError as error:
            raise SourceError(f"cannot be read: {error.strerror}") from None


def open_path(path: Path, within: Path | None = None) -> int:
    """A descriptor of a regular file that, with all its links followed, is within a folder. Raises SourceError."""
    try:
        real = path.resolve(strict=True)
        if within is not None and not real.is_relative_to(within.resolve()):
            raise SourceError(f"is a link that leads out of {within}, to {real}")
        # NONBLOCK: opening a named pipe must not hang the boot. NOFOLLOW: what was resolved is what is opened.
        descriptor = os.open(real, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOFOLLOW)
    except FileNotFoundError:
        raise SourceError("is missing") from None
    except PermissionError:
        raise SourceError(f"may not be read by user {os.geteuid()}: {_owner(path)}") from None
    except (OSError, RuntimeError) as error:  # RuntimeError: a loop of links
        raise SourceError(f"cannot be read: {getattr(error, 'strerror', None) or error}") from None
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise SourceError("is not a regular file")
    return descriptor


def path_of(uri: str) -> Path:
    """The path that a file:// URI names; raises SourceError."""
    parts = urlsplit(uri)
    if parts.netloc not in ("", "localhost"):
        raise SourceError(
            f"names the host {parts.netloc!r}; a file:// URI has three slashes: file:///{parts.netloc}{parts.path}"
        )
    text = unquote(parts.path)
    if "\0" in text or ".." in text.split("/") or parts.query or parts.fragment:
        raise SourceError("holds '..', NUL, '?' or '#'; write the plain path, percent-encoded")
    return Path(text)


def _owner(path: Path) -> str:
    try:
        info = path.stat()
    except OSError:
        return f"a folder above it is closed; run as another user or open {path.parent} to all"
    return f"owner {info.st_uid}:{info.st_gid}, mode {stat.S_IMODE(info.st_mode):04o}; make it readable (chmod a+r)"
