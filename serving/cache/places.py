"""Where a file is looked for: in the image, then in the cache, then at its source. Its bytes are checked in each."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

from blake3 import blake3

from serving.cache import local
from serving.cache.download import Patience, download
from serving.cache.sources import Sources
from serving.cache.sources.base import Location, SourceError
from serving.cache.sources.file import path_of, read
from serving.contract.profile import ProfileFile

Say = Callable[[str], None]
PATIENCE = Patience()


@dataclass(frozen=True, kw_only=True)
class Places:
    """Where files may be, in the order in which they are looked for."""

    root: Path  # embedded files: the image's
    cache_path: Path | None = None  # NIM_CACHE_PATH; may be read-only
    repository: str | None = None  # where relative URIs start: "s3://bucket/mirror", "oci://host/model:1"
    may_download: bool = True  # False: NIM_DISABLE_MODEL_DOWNLOAD
    token: str | None = None  # for https:// and oci:// repositories
    patience: Patience = PATIENCE


def locate(file: ProfileFile, repository: str) -> Location:
    """A file's address: its own if that is absolute, else from where relative ones start."""
    if "://" in file.uri:
        return Location(uri=file.uri)
    base = repository.rstrip("/")
    return Location(uri=f"{base}/{quote(file.uri)}", within=base)


class Finder:
    """Looks for files in their places."""

    def __init__(self, places: Places, say: Say) -> None:
        self._places = places
        self._say = say
        self._sources = Sources(token=places.token)

    def bytes_of(self, file: ProfileFile) -> bytes:
        """A file's bytes, downloaded where they are not here. Raises SourceError and local.NotWritable."""
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
        """Bring a file from its source into the cache; where from. Raises SourceError and local.NotWritable."""
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
