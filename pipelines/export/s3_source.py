"""Models kept in a bucket, s3://bucket/prefix: their revision from the listing's etags, their files into a local cache.

boto3's own settings apply (AWS_ENDPOINT_URL, AWS_PROFILE, keys, roles).
"""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path, PurePosixPath

from pipelines.errors import ExportError, FetchError, PublishError
from pipelines.remote.bucket import Bucket, Object


def revision(source: str, suffixes: Sequence[str]) -> str:
    """ "s3-etags:…" over the names, sizes and etags of the files that make the model. Downloads nothing."""
    with _fetching(source):
        return _digest(_files(source, Bucket(source), suffixes))


def fetch(source: str, suffixes: Sequence[str], wanted: str | None = None) -> Path:
    """The model's folder in the local cache, complete and of one revision. wanted: refuse any other."""
    with _fetching(source):
        bucket = Bucket(source)
        files = _files(source, bucket, suffixes)
        current = _digest(files)
        if wanted not in (None, current):
            raise FetchError(f"{source}: was {wanted} when the build was planned and is {current} now; build again")
        folder = cache() / current.partition(":")[2]
        if folder.is_dir():
            return folder
        folder.parent.mkdir(parents=True, exist_ok=True)
        scratch = Path(tempfile.mkdtemp(dir=folder.parent, prefix=".fetching-"))
        try:
            for file in files:
                target = scratch / file.key
                target.parent.mkdir(parents=True, exist_ok=True)
                bucket.get_file(file, target)
            try:
                scratch.rename(folder)
            except OSError:  # another process was faster
                if not folder.is_dir():
                    raise
        finally:
            shutil.rmtree(scratch, ignore_errors=True)
        return folder


def cache() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "enginery" / "models"


def _files(source: str, bucket: Bucket, suffixes: Sequence[str]) -> list[Object]:
    """The objects that make the model, by name."""
    files = []
    for listed in bucket.objects(""):
        name = PurePosixPath(listed.key)
        if ".." in name.parts or name.is_absolute():
            raise ExportError(f"{source}: {listed.key!r} would be written outside the model's folder; rename it")
        if name.suffix in suffixes:
            files.append(listed)
    if not files:
        raise ExportError(f"{source}: the bucket has no model files there ({', '.join(suffixes)})")
    return sorted(files, key=lambda file: file.key)


def _digest(files: Sequence[Object]) -> str:
    total = hashlib.sha256()
    for file in files:
        total.update(f"{file.key}\0{file.size_bytes}\0{file.etag}\n".encode())
    return f"s3-etags:{total.hexdigest()}"


@contextmanager
def _fetching(source: str) -> Iterator[None]:
    try:
        yield
    except PublishError as error:
        raise FetchError(f"{source}: could not be read from the bucket ({error})") from None
