"""Bring one file from a source into a cache: where it goes on after a failure, what ends it, what is refused."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from serving.cache import local
from serving.cache.sources.base import Location, Source, SourceError, Transient, opened
from serving.contract.profile import ProfileFile

MAX_BYTES = 1 << 40  # of a file whose manifest gives no size


@dataclass(frozen=True, kw_only=True)
class Patience:
    """How often a source that fails for the moment is asked again. Only attempts that brought no byte count."""

    attempts: int = 6
    first_delay_s: float = 0.5  # doubled each time: about 15 s in all
    sleep: Callable[[float], None] = time.sleep


class WrongContent(SourceError):
    """The source sends bytes that are not the file's."""


def download(
    file: ProfileFile, location: Location, source: Source, target: Path, patience: Patience | None = None
) -> None:
    """Put a file at `target`, verified; nothing if it is there. Raises SourceError, or local.NotWritable.

    The bytes are hashed as they come. What an interrupted download left is kept and continued; bytes that turn out
    wrong are removed.
    """
    part = local.claim(target, file)
    if part is None:
        return
    with part:
        try:
            _fill(part, file, location, source, patience or Patience())
            part.place()
        except WrongContent:
            part.drop()
            raise
        except OSError as error:
            raise local.NotWritable(local.why_not(target, error)) from None


def _fill(part: local.Part, file: ProfileFile, location: Location, source: Source, patience: Patience) -> None:
    began = _Began(spliced=part.size_bytes > 0)
    failures, best, once_more = 0, part.size_bytes, True
    while True:
        try:
            if part.size_bytes != file.size_bytes or not began.spliced:
                _receive(part, file, location, source, began)
            if (wrong := local.wrong_digest(part.hasher, file)) is None:
                return
            raise WrongContent(wrong)
        except WrongContent:
            if not (began.spliced and once_more):
                raise
            once_more, best, began = False, 0, _Began(spliced=False)
            part.clear()
        except Transient as error:
            failures = 0 if part.size_bytes > best else failures + 1
            best = max(best, part.size_bytes)
            if failures == patience.attempts:
                raise SourceError(f"{error}; given up after {failures} attempts without a new byte") from None
            patience.sleep(patience.first_delay_s * 2 ** max(0, failures - 1))


@dataclass
class _Began:
    """What is known of the bytes that a part has."""

    spliced: bool  # they came in several pieces: perhaps of two states of the file, or an earlier process's lost write
    version: str = ""  # of the file that they are of, where this process received them


def _receive(part: local.Part, file: ProfileFile, location: Location, source: Source, began: _Began) -> None:
    """Append what the source sends, to its end. Raises SourceError."""
    limit = file.size_bytes if file.size_bytes >= 0 else MAX_BYTES
    with opened(source, location, part.size_bytes, began.version) as stream:
        if file.size_bytes >= 0 and stream.size_bytes not in (None, file.size_bytes):
            raise WrongContent(f"has {stream.size_bytes} bytes there where the manifest says {file.size_bytes}")
        if stream.offset != part.size_bytes:
            part.clear()
        began.spliced, began.version = part.size_bytes > 0, stream.version
        while data := stream.read(local.CHUNK_BYTES):
            if part.size_bytes + len(data) > limit:
                raise WrongContent(f"has more than the {limit} bytes that the manifest says")
            part.write(data)
    promised = file.size_bytes if file.size_bytes >= 0 else stream.size_bytes
    if promised is not None and part.size_bytes < promised:
        raise Transient(f"the connection ended after {part.size_bytes} of {promised} bytes")
