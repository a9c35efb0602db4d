"""What a source is: it sends a file from an offset, or says why it cannot and whether asking again may help."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Protocol


class SourceError(Exception):
    """Why a source does not give a file, and the remedy. Asking again gives the same answer."""


class Transient(SourceError):
    """A failure of the moment: the network broke, the server is busy. Asking again may help."""


@dataclass(frozen=True, kw_only=True)
class Location:
    """A file's address, and the folder or repository that it must stay within."""

    uri: str  # "s3://bucket/mirror/blobs/blake3/ab…"
    within: str | None = None  # "s3://bucket/mirror"; None: the manifest itself gave an absolute address

    @property
    def scheme(self) -> str:
        return self.uri.partition("://")[0]


@dataclass(frozen=True, kw_only=True)
class Opened:
    """A file that a source has begun to send. `read` gives b"" at the end and raises Transient when the line breaks."""

    read: Callable[[int], bytes]
    close: Callable[[], None]
    offset: int  # of the first byte that comes: what was asked for, or 0 where the source starts anew
    size_bytes: int | None = None  # of the whole file, if the source says
    version: str = ""  # names this state of the file (an ETag): a later part must be of the same


class Source(Protocol):
    """Where files come from: one kind of address."""

    def open(self, location: Location, offset: int, version: str) -> Opened:
        """Begin to send a file from `offset` if the source still has it in the state `version`; raises SourceError."""


@contextmanager
def opened(source: Source, location: Location, offset: int, version: str) -> Iterator[Opened]:
    """A source's file, closed at the end."""
    stream = source.open(location, offset, version)
    try:
        yield stream
    finally:
        stream.close()
