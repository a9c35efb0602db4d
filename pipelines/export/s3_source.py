"""Models kept in a bucket, s3://bucket/prefix: their revision from the listing's etags, their files into a local cache.

boto3's own settings apply (AWS_ENDPOINT_URL, AWS_PROFILE, keys, roles).
"""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import urlsplit

from pipelines.errors import ExportError, FetchError


@dataclass(frozen=True, kw_only=True)
class Object:
    """One file of a model, as the bucket lists it."""

    name: str  # below the prefix: "1_Pooling/config.json"
    key: str
    etag: str  # changes with the bytes
    size_bytes: int


def revision(source: str, suffixes: Sequence[str]) -> str:
    """ "s3-etags:…" over the names, sizes and etags of the files that make the model. Downloads nothing."""
    return _digest(_listed(source, suffixes))


def fetch(source: str, suffixes: Sequence[str], wanted: str | None = None) -> Path:
    """The model's folder in the local cache, complete and of one revision. wanted: refuse any other."""
    objects = _listed(source, suffixes)
    found = _digest(objects)
    if wanted is not None and found != wanted:
        raise FetchError(f"{source}: was {wanted} when the build was planned and is {found} now; build again")
    folder = cache() / found.partition(":")[2]
    if folder.is_dir():
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(dir=folder.parent, prefix=".fetching-"))
    try:
        client, bucket = _client(), urlsplit(source).netloc
        for each in objects:
            target = scratch / each.name
            target.parent.mkdir(parents=True, exist_ok=True)
            with target.open("wb") as file:
                body = _asked(source, client.get_object, Bucket=bucket, Key=each.key, IfMatch=each.etag)
                shutil.copyfileobj(body["Body"], file)
            if target.stat().st_size != each.size_bytes:
                raise FetchError(f"{source}: {each.name} came with another size than it is listed with; build again")
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


def _listed(source: str, suffixes: Sequence[str]) -> list[Object]:
    parts = urlsplit(source)
    prefix = parts.path.strip("/") + "/"
    client = _client()
    pages = _asked(source, _pages, client, Bucket=parts.netloc, Prefix=prefix)
    objects = []
    for item in (item for page in pages for item in page.get("Contents", ())):
        name = PurePosixPath(item["Key"].removeprefix(prefix))
        if ".." in name.parts or name.is_absolute():
            raise ExportError(f"{source}: {item['Key']!r} would be written outside the model's folder; rename it")
        if name.suffix in suffixes:
            each = Object(name=str(name), key=item["Key"], etag=item["ETag"], size_bytes=item["Size"])
            objects.append(each)
    if not objects:
        raise ExportError(f"{source}: the bucket has no model files there ({', '.join(suffixes)})")
    return sorted(objects, key=lambda each: each.name)


def _digest(objects: Sequence[Object]) -> str:
    total = hashlib.sha256()
    for each in objects:
        total.update(f"{each.name}\0{each.size_bytes}\0{each.etag}\n".encode())
    return f"s3-etags:{total.hexdigest()}"


def _client() -> Any:
    import boto3

    session = boto3.Session()
    return session.client("s3", region_name=session.region_name or "us-east-1")


def _pages(client: Any, **where: str) -> list[Any]:
    return list(client.get_paginator("list_objects_v2").paginate(**where))


def _asked(source: str, ask: Callable[..., Any], *arguments: Any, **named: Any) -> Any:
    from botocore.exceptions import BotoCoreError, ClientError

    try:
        return ask(*arguments, **named)
    except (BotoCoreError, ClientError) as error:
        raise FetchError(f"{source}: could not be read from the bucket ({error})") from error
