"""models/MODEL/latest.json of a bucket: which release of a model is current, and which there were.

The only object that changes, and the last that a publication writes.
"""

from __future__ import annotations

from contextlib import suppress
from datetime import UTC, datetime

import msgspec

from pipelines.errors import OvertakenError, PublishError
from pipelines.remote.bucket import Bucket, Object, Overtaken
from pipelines.store.files import canonical

HISTORY = 1000  # releases that the pointer remembers
MAX_BYTES = 16 << 20


class ReleaseEntry(msgspec.Struct, frozen=True, kw_only=True):
    """One release that was current once."""

    sequence: int  # 1 for the first
    digest: str  # of release.json
    release: str  # "0.1.0"
    published_at: str  # "2026-11-21T12:00:00Z"


class Pointer(msgspec.Struct, frozen=True, kw_only=True):
    """latest.json: a model's releases, of which the first is the current one."""

    schema_version: int
    model: str
    releases: tuple[ReleaseEntry, ...]  # the newest first: that is the current one

    @property
    def current(self) -> ReleaseEntry:
        return self.releases[0]


def pointer_key(model: str) -> str:
    return f"models/{model}/latest.json"


def load_pointer(data: bytes, source: str) -> Pointer:
    try:
        pointer = msgspec.json.decode(data, type=Pointer)
    except (msgspec.DecodeError, msgspec.ValidationError) as error:
        raise PublishError(f"{source} is not a pointer of enginery ({error})") from None
    if pointer.schema_version != 1 or not pointer.releases:
        raise PublishError(f"{source} is not a pointer that this enginery reads; use a later one")
    return pointer


def read_pointer(bucket: Bucket, model: str) -> tuple[Pointer, Object] | None:
    """A model's pointer and the object that holds it; None before its first release."""
    stored = bucket.get(pointer_key(model), MAX_BYTES)
    return None if stored is None else (load_pointer(stored[0], f"{bucket.uri}/{pointer_key(model)}"), stored[1])


def move_pointer(
    bucket: Bucket, model: str, *, digest: str, release: str, seen: tuple[Pointer, Object] | None, conditional: bool
) -> Pointer:
    """Make a release the current one, if the pointer still is as it was seen; else raises OvertakenError.

    conditional=False: for a server without conditional writes, which leaves a moment between looking and writing.
    """
    old, stored = seen or (None, None)
    entry = ReleaseEntry(
        sequence=old.current.sequence + 1 if old else 1,
        digest=digest,
        release=release,
        published_at=datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
    )
    releases = (entry, *(old.releases if old else ()))[:HISTORY]
    data = canonical(msgspec.to_builtins(Pointer(schema_version=1, model=model, releases=releases)))
    if conditional:
        with suppress(Overtaken):  # or the write was done and its answer was lost: what stands now decides
            bucket.swap(pointer_key(model), data, stored)
    elif _etag(bucket.head(pointer_key(model))) == _etag(stored):
        bucket.put(pointer_key(model), data)
    now = read_pointer(bucket, model)
    if now is None or entry not in now[0].releases:
        current = now[0].current if now else None
        theirs = f"{current.release} ({current.digest}, number {current.sequence})" if current else "none"
        raise OvertakenError(
            f"{bucket.uri}/{pointer_key(model)}: somebody else published meanwhile; now current: {theirs}. This "
            "release was not made current; look at it with `enginery diff`, then publish again if yours should follow "
            "it"
        )
    return now[0]


def _etag(stored: Object | None) -> str | None:
    return stored.etag if stored else None
