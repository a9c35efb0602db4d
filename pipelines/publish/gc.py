"""Remove from a bucket the objects that no kept release needs, and no reader or running publication may ask for.

Of each model, the newest releases are kept, and those younger than the grace age, with every file that they name. Any
other object is removed once it is older than the grace age; its age is read again right before. A publication sends
blobs again that are older than 12 h, unless the current release uses them, so no blob of a running publication is old
enough (to_bucket.FRESH). A collection writes no pointer: it cannot undo a publication.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from pipelines.errors import PublishError
from pipelines.publish import to_bucket
from pipelines.publish.to_bucket import MIN_GRACE
from pipelines.remote import Log
from pipelines.remote.bucket import Bucket, Object
from pipelines.remote.pointer import Pointer, ReleaseEntry, read_pointer

BLOBS = "blobs/"


@dataclass(frozen=True, kw_only=True)
class Collected:
    """What a collection did, or would do."""

    kept: Mapping[str, tuple[ReleaseEntry, ...]]  # model -> releases, the newest first
    dropped: Mapping[str, tuple[ReleaseEntry, ...]]  # releases that can no longer be read
    removed: tuple[Object, ...]
    too_young: tuple[Object, ...]  # needed by nobody, and left until they are older
    uploads: tuple[str, ...]  # uploads in parts that nobody ended
    num_needed: int


def collect(
    to: str,
    *,
    keep: int,
    grace: timedelta,
    dry_run: bool = False,
    log: Log = lambda _: None,
    now: datetime | None = None,
) -> Collected:
    """Collect the garbage of s3://BUCKET/PREFIX; raises PublishError. dry_run: only say what would go.

    now: for tests; ages are otherwise differences on the server's clock.
    """
    if not to.startswith("s3://"):
        raise PublishError(f"--to {to}: only buckets are collected here; a registry has a collector of its own")
    if keep < 1 or grace < MIN_GRACE:
        least = f"{MIN_GRACE // timedelta(hours=1)} h"
        raise PublishError(f"--keep must be at least 1, --grace at least {least}: longer than any publication takes")
    bucket = Bucket(to)
    while True:
        pointers = _pointers(bucket)
        if not pointers:
            raise PublishError(f"{to} has no models/*/latest.json: it is no place that `enginery publish` wrote to")
        time = now or max(seen.server_time or datetime.now(UTC) for _, seen in pointers.values())
        kept = {model: _kept(pointer, keep, time - grace) for model, (pointer, _) in pointers.items()}
        needed = set[str]().union(*(_named(bucket, model, entries) for model, entries in kept.items()))
        garbage = [one for one in bucket.objects(BLOBS) if one.key not in needed]
        # Only what was garbage when nobody had published since: else look again.
        if {model: seen.etag for model, (_, seen) in _pointers(bucket).items()} == {
            model: seen.etag for model, (_, seen) in pointers.items()
        }:
            break
        log("somebody published meanwhile: looking again")
    old = [one for one in garbage if time - one.modified >= grace]
    # A release's documents before its files: one that can still be read has them all, wherever this is interrupted.
    old.sort(key=lambda one: (not one.key.startswith(f"{BLOBS}sha256/"), one.key))
    removed = [one for one in old if dry_run or _remove(bucket, one, grace, now)]
    uploads = [(key, upload) for key, upload, begun in bucket.uploads(BLOBS) if time - begun >= grace]
    for key, upload in uploads if not dry_run else ():
        bucket.abort(key, upload)
    gone = {one.key for one in removed}
    return Collected(
        kept=kept,
        dropped={
            model: tuple(e for e in pointer.releases if to_bucket.document_key(e.digest) in gone)
            for model, (pointer, _) in pointers.items()
        },
        removed=tuple(removed),
        too_young=tuple(one for one in garbage if one.key not in gone),
        uploads=tuple(key for key, _ in uploads),
        num_needed=len(needed),
    )


def _pointers(bucket: Bucket) -> dict[str, tuple[Pointer, Object]]:
    models = [listed.key.split("/")[1] for listed in bucket.objects("models/") if listed.key.endswith("/latest.json")]
    return {model: seen for model in models if (seen := read_pointer(bucket, model)) is not None}


def _kept(pointer: Pointer, keep: int, since: datetime) -> tuple[ReleaseEntry, ...]:
    return tuple(
        entry
        for place, entry in enumerate(pointer.releases)
        if place < keep or datetime.fromisoformat(entry.published_at) >= since
    )


def _named(bucket: Bucket, model: str, entries: Iterable[ReleaseEntry]) -> set[str]:
    """The keys that a model's kept releases need. Raises PublishError if the current one is damaged."""
    needed = set[str]()
    for place, entry in enumerate(entries):
        try:
            found = to_bucket.read(bucket, entry.digest)
        except PublishError as error:
            if place == 0:
                raise PublishError(
                    f"{error}\nnothing is removed while the current release of {model} is damaged"
                ) from None
            if bucket.head(to_bucket.document_key(entry.digest)) is not None:
                raise
            continue  # an earlier collection, with a smaller --keep, removed it
        needed |= {to_bucket.document_key(entry.digest), to_bucket.document_key(found.document.manifest)}
        needed |= set(found.files)
    return needed


def _remove(bucket: Bucket, one: Object, grace: timedelta, now: datetime | None) -> bool:
    """Remove an object unless it became young: a publication that wants it has sent it again."""
    there = bucket.head(one.key)
    if there is None:
        return False
    if (now or there.server_time or datetime.now(UTC)) - there.modified < grace:
        return False
    bucket.delete(one.key)
    return True


def text(found: Collected, *, dry_run: bool) -> str:
    """What `enginery gc` prints."""
    lines = []
    for model, entries in sorted(found.kept.items()):
        lines.append(f"{model}: keeps {', '.join(f'{e.release} (@{e.sequence})' for e in entries)}")
        lines += [f"  drops {e.release} (@{e.sequence}, {e.published_at})" for e in found.dropped[model]]
    size = sum(one.size_bytes for one in found.removed) / 1e6
    lines += [f"  {one.key}  {one.size_bytes / 1e6:.1f} MB, of {one.modified:%Y-%m-%d}" for one in found.removed]
    young = sum(one.size_bytes for one in found.too_young) / 1e6
    lines += [
        f"{'would remove' if dry_run else 'removed'} {len(found.removed)} objects ({size:.1f} MB) and "
        f"{len(found.uploads)} unfinished uploads; {found.num_needed} are needed, {len(found.too_young)} "
        f"({young:.1f} MB) by nobody but too young",
    ]
    return "\n".join(lines)


def parse_age(words: str) -> timedelta:
    """ "7d", "36h"; raises PublishError."""
    units = {"d": "days", "h": "hours"}
    if not words[:-1].isdecimal() or words[-1:] not in units:
        raise PublishError(f"--grace {words}: is not an age such as 7d or 36h")
    return timedelta(**{units[words[-1]]: int(words[:-1])})
