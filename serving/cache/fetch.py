"""Turn a profile's files into bytes that are known to be the right ones: embedded, cached, or from their source."""

from __future__ import annotations

import logging
import os
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

from blake3 import blake3

from serving.cache import local
from serving.cache.download import Patience, download
from serving.cache.sources import Sources
from serving.cache.sources.base import Location, SourceError
from serving.cache.sources.file import path_of, read
from serving.contract.profile import Profile, ProfileFile
from serving.errors import CacheError

__all__ = ["Places", "ensure", "fetch", "locate"]

log = logging.getLogger(__name__)
Say = Callable[[str], None]
ONCE_MORE = Patience()


@dataclass(frozen=True, kw_only=True)
class Places:
    """Where files may be, in the order in which they are looked for."""

    root: Path  # embedded files: the image's
    cache_path: Path | None = None  # NIM_CACHE_PATH; may be read-only
    repository: str | None = None  # where relative URIs start: "s3://bucket/mirror", "oci://host/model:1"
    may_download: bool = True  # False: NIM_DISABLE_MODEL_DOWNLOAD
    token: str | None = None  # for https:// and oci:// repositories
    patience: Patience = ONCE_MORE


def fetch(
    profile: Profile,
    *,
    root: Path,
    cache_path: Path | None = None,
    override: str | None = None,
    may_download: bool = True,
    token: str | None = None,
) -> dict[str, bytes]:
    """The profile's files by their workspace name, each checked against the manifest's size and checksum.

    The check is made on the very bytes that are returned, and before anything parses them: an engine file is executable
    code. A file that is embedded or cached is not asked for elsewhere. Raises CacheError that lists every bad file.
    """
    return fetch_with(
        profile,
        Places(root=root, cache_path=cache_path, repository=override, may_download=may_download, token=token),
    )


def fetch_with(profile: Profile, places: Places) -> dict[str, bytes]:
    """The same, from places given as one."""
    contents: dict[str, bytes] = {}
    with _Problems(f"profile {profile.id} ({profile.name})") as problems:
        finder = _Finder(places, log.info)
        for file in profile.files:
            with problems.of(f"{file.path} ({file.uri})"):
                contents[file.path] = finder.bytes_of(file)
    return contents


def ensure(profiles: Sequence[Profile], places: Places, say: Say) -> Mapping[str, str]:
    """See to it that every file of profiles is embedded or in the cache, whole: checksum -> where it was found.

    Each file is read once however many profiles share it, and none is held in memory. Raises CacheError that lists
    every bad file, after the good ones are in the cache.
    """
    files = {file.checksum: file for profile in profiles for file in profile.files}
    users: dict[str, list[str]] = {}
    for profile in profiles:
        for file in profile.files:
            users.setdefault(file.checksum, []).append(f"{profile.id} ({profile.name}): {file.path} ({file.uri})")
    found: dict[str, str] = {}
    with _Problems(f"files of {len(profiles)} profile(s)") as problems:
        finder = _Finder(places, say)
        missing = []
        for checksum, file in files.items():
            with problems.of(*users[checksum]):
                if where := finder.verified(file):
                    found[checksum] = where
                else:
                    missing.append(file)
        finder.check_space(missing)
        for file in missing:
            with problems.of(*users[file.checksum]):
                found[file.checksum] = finder.download(file)
    return found


def locate(file: ProfileFile, repository: str) -> Location:
    """A file's address: its own if that is absolute, else from where relative ones start."""
    if "://" in file.uri:
        return Location(uri=file.uri)
    base = repository.rstrip("/")
    return Location(uri=f"{base}/{quote(file.uri)}", within=base)


class _Finder:
    """Looks for files in their places."""

    def __init__(self, places: Places, say: Say) -> None:
        self._places = places
        self._say = say
        self._sources = Sources(token=places.token)

    def bytes_of(self, file: ProfileFile) -> bytes:
        if (embedded := self._embedded(file)) is not None:
            return _checked(file, read(embedded, file.size_bytes, self._places.root))
        cached = self._cached(file)
        if cached is not None and os.path.lexists(cached):
            try:
                return _checked(file, read(cached, file.size_bytes))
            except SourceError as error:
                if not self._places.may_download or not self._has_source(file):
                    raise SourceError(f"{cached} {error}; remove it and run download-to-cache") from None
                self._say(f"{cached} {error}: asking for it anew")
        location = self._location(file)
        if location.scheme == "file":  # this machine's own: read where it lies
            within = None if location.within is None else path_of(location.within)
            try:
                return _checked(file, read(path_of(location.uri), file.size_bytes, within))
            except SourceError as error:
                raise SourceError(f"{location.uri} {error}") from None
        self.download(file)
        return _checked(file, read(self._target(file), file.size_bytes))

    def verified(self, file: ProfileFile) -> str | None:
        """Where a file is embedded or cached whole; None: it must be downloaded. Raises SourceError."""
        if (embedded := self._embedded(file)) is not None:
            if wrong := local.problem(embedded, file, self._places.root):
                raise SourceError(wrong)
            return "embedded in the image"
        cached = self._cached(file)
        if cached is not None and os.path.lexists(cached):
            if (wrong := local.problem(cached, file)) is None:
                return "in the cache"
            self._say(f"{cached} {wrong}: asking for it anew")
        return None

    def download(self, file: ProfileFile) -> str:
        location = self._location(file)
        target, began = self._target(file), time.monotonic()
        self._say(f"Downloading {file.path} ({file.size_bytes / 1e6:.1f} MB) from {location.uri}")
        try:
            download(file, location, self._sources.of(location), target, self._places.patience)
        except SourceError as error:
            raise SourceError(f"{location.uri}: {error}") from None
        self._say(f"Downloaded {file.path} in {time.monotonic() - began:.1f} s")
        return f"downloaded from {location.within or location.uri}"

    def check_space(self, files: Sequence[ProfileFile]) -> None:
        """Better refused now than after an hour. Raises local.NotWritable."""
        cache_path = self._places.cache_path
        if cache_path is None or not self._places.may_download:
            return
        needed = sum(max(0, file.size_bytes - local.begun_bytes(local.blob(cache_path, file))) for file in files)
        folder = next(f for f in (cache_path, *cache_path.absolute().parents) if f.is_dir())
        if (free := shutil.disk_usage(folder).free) < needed:
            raise local.NotWritable(
                f"NIM_CACHE_PATH {cache_path} has {free / 1e6:.0f} MB free and {needed / 1e6:.0f} MB are "
                "to be downloaded; free some space or use a larger volume"
            )

    def _embedded(self, file: ProfileFile) -> Path | None:
        if "://" in file.uri:
            return None
        path = path_of((self._places.root.absolute() / file.uri).as_uri())
        return path if os.path.lexists(path) else None

    def _cached(self, file: ProfileFile) -> Path | None:
        return None if self._places.cache_path is None else local.blob(self._places.cache_path, file)

    def _has_source(self, file: ProfileFile) -> bool:
        return "://" in file.uri or self._places.repository is not None

    def _location(self, file: ProfileFile) -> Location:
        where = f"neither embedded below {self._places.root} nor in the cache {self._places.cache_path or '(none)'}"
        if not self._has_source(file):
            raise SourceError(
                f"is missing: {where}, and no repository is known: set NIM_REPOSITORY_OVERRIDE, or mount a filled cache"
            )
        location = locate(file, self._places.repository or "")
        if location.scheme != "file" and not self._places.may_download:
            raise SourceError(
                f"is missing: {where}, and NIM_DISABLE_MODEL_DOWNLOAD is set: unset it, or mount a filled cache"
            )
        self._sources.of(location)  # refuses a scheme that nobody reads
        return location

    def _target(self, file: ProfileFile) -> Path:
        if (target := self._cached(file)) is None:
            raise SourceError("is missing, and no NIM_CACHE_PATH is given to download it to")
        return target


def _checked(file: ProfileFile, data: bytes) -> bytes:
    if file.size_bytes >= 0 and len(data) != file.size_bytes:
        raise SourceError(f"has {len(data)} bytes where the manifest says {file.size_bytes}")
    if wrong := local.wrong_digest(blake3(data, max_threads=blake3.AUTO), file):
        raise SourceError(wrong)
    return data


class _Problems:
    """Collects what is wrong with each file, and raises it all at the end; a folder that is closed ends it at once."""

    def __init__(self, where: str) -> None:
        self._where = where
        self._found: list[str] = []

    def __enter__(self) -> _Problems:
        return self

    def of(self, *what: str) -> _Problem:
        return _Problem(what, self._found)

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if isinstance(error, local.NotWritable):
            self._found.append(str(error))
        elif error is not None:
            return
        if self._found:
            remedy = "nothing unverified is used: pull the image again, copy the mirror again, or fill the cache again"
            raise CacheError(self._where, [*self._found, remedy]) from None


class _Problem:
    """One file's part of it, under each name that it goes by."""

    def __init__(self, what: Sequence[str], found: list[str]) -> None:
        self._what = what
        self._found = found

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> bool:
        if not isinstance(error, SourceError):
            return False
        self._found += [f"{what}: {error}" for what in self._what]
        return True
