"""Where files are downloaded from: one source for each scheme, and how a source says that it cannot give one."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
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
    def open(self, location: Location, offset: int, version: str) -> Opened:
        """Begin to send a file from `offset` if the source still has it in the state `version`; raises SourceError."""


SCHEMES = ("file", "https", "http", "s3", "oci", "oci+http")


class Sources:
    """The sources of one fetch, made when the first file asks for them: a server that has its files imports none."""

    def __init__(self, *, token: str | None = None, environ: Mapping[str, str] | None = None) -> None:
        self._token = token
        self._environ = environ
        self._made: dict[str, Source] = {}

    def of(self, location: Location) -> Source:
        """The source that reads a location; raises SourceError for a scheme that none reads."""
        scheme = location.scheme
        if scheme not in SCHEMES:
            known = ", ".join(f"{s}://" for s in SCHEMES)
            raise SourceError(f"{scheme}:// is not a source that this server reads ({known})")
        if scheme not in self._made:
            self._made[scheme] = self._make(scheme)
        return self._made[scheme]

    def _make(self, scheme: str) -> Source:
        if scheme == "file":
            from serving.cache.sources.file import FileSource

            return FileSource()
        if scheme == "s3":
            from serving.cache.sources.s3 import S3Source

            return S3Source()
        from serving.cache.sources.http import Http, HttpSource

        if scheme in ("http", "https"):
            return HttpSource(Http(), token=self._token)
        from serving.cache.sources.oci import OciSource, docker_logins

        return OciSource(Http(), logins=docker_logins(self._environ), token=self._token)


@contextmanager
def opened(source: Source, location: Location, offset: int, version: str) -> Iterator[Opened]:
    """A source's file, closed at the end."""
    stream = source.open(location, offset, version)
    try:
        yield stream
    finally:
        stream.close()
