"""Publish a model to an S3 bucket: blobs by digest, then manifest and release by digest, then the pointer.

Below s3://BUCKET/PREFIX:
  blobs/blake3/HEX           every file of every profile: what slim images download (NIM_REPOSITORY_OVERRIDE)
  blobs/sha256/HEX           release.json and model_manifest.yaml
  models/MODEL/latest.json   the pointer: which release is current, and which there were. The only object that changes.
"""

from __future__ import annotations

from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path

import msgspec

from pipelines.errors import OvertakenError, PublishError
from pipelines.image import package
from pipelines.release import document as releases
from pipelines.release.document import Published
from pipelines.remote import Log
from pipelines.remote.bucket import Bucket, Damaged, Object, Overtaken, Unconditional
from pipelines.remote.remedies import nothing_published
from pipelines.store.files import canonical
from serving.contract.profile import ProfileFile

# A blob that is there already and that the current release does not need may be garbage that is about to be collected.
# A younger one than this is not: collecting leaves alone what is younger than MIN_GRACE, which is longer by more than
# any publication takes. An older one is sent again, which makes it young.
FRESH = timedelta(hours=12)
MIN_GRACE = timedelta(hours=24)
UNGUARDED = (
    "{}: this S3 server has no conditional writes, so two publishers could overwrite each other; see to it that only "
    "one runs at a time, and say --unguarded"
)
HISTORY = 1000  # releases that the pointer remembers
BLOBS_AT_ONCE = 4  # with 4 parts of 8 MiB each in memory


class Entry(msgspec.Struct, frozen=True, kw_only=True):
    """One release that was current once."""

    sequence: int  # 1 for the first
    digest: str  # of release.json
    release: str  # "0.1.0"
    published_at: str  # "2026-11-21T12:00:00Z"


class Pointer(msgspec.Struct, frozen=True, kw_only=True):
    """models/MODEL/latest.json."""

    schema_version: int
    model: str
    releases: tuple[Entry, ...]  # the newest first: that is the current one

    @property
    def current(self) -> Entry:
        return self.releases[0]


@dataclass(frozen=True, kw_only=True)
class Result:
    """What a publication did."""

    reference: str  # "s3://bucket/prefix/all-minilm-l6-v2", "oci://registry/repository:tag": what the readers take
    digest: str  # of the release
    uploaded: int  # blobs
    uploaded_bytes: int
    reused: int
    moved: bool  # False: this very release was current already
    sequence: int | None = None  # of a bucket's pointer: 1 for the first release
    names: Mapping[str, str] = field(default_factory=dict)  # every name that now stands -> the digest behind it


def pointer_key(model: str) -> str:
    return f"models/{model}/latest.json"


def document_key(digest: str) -> str:
    return f"blobs/{digest.replace(':', '/')}"


def read_pointer(data: bytes, source: str) -> Pointer:
    try:
        found = msgspec.json.decode(data, type=Pointer)
    except (msgspec.DecodeError, msgspec.ValidationError) as error:
        raise PublishError(f"{source} is not a pointer of enginery ({error})") from None
    if found.schema_version != 1 or not found.releases:
        raise PublishError(f"{source} is not a pointer that this enginery reads; use a later one")
    return found


def publish(folder: Path, to: str, *, guarded: bool = True, log: Log = lambda _: None) -> Result:
    """Publish dist/MODEL to s3://BUCKET/PREFIX. Readers see the release before or this one, each complete.

    guarded=False: move the pointer also where the server has no conditional writes; then one publisher at a time is the
    caller's care. Raises OvertakenError if somebody else published meanwhile, PublishError for all else.
    """
    new = releases.of_folder(folder)
    model, bucket = new.document.model, Bucket(to)
    key = pointer_key(model)
    there = bucket.get(key, releases.MAX_BYTES)
    pointer = read_pointer(there[0], f"{bucket.uri}/{key}") if there else None
    seen = there[1] if there else None
    moved = pointer is None or pointer.current.digest != new.digest
    if moved and guarded and not bucket.honours_conditions(f"models/{model}/condition"):
        raise PublishError(UNGUARDED.format(bucket.uri))
    old = _current(bucket, pointer.current) if pointer else None
    sent = _send_all(bucket, folder, new.files, old.files if old else {}, log)
    for digest, data in ((new.document.manifest, new.manifest_bytes), (new.digest, new.dump())):
        if old is None or digest not in (old.document.manifest, old.digest):
            bucket.put(document_key(digest), data)
    if moved:
        pointer = _move(bucket, new, pointer, seen, guarded=guarded)
    assert pointer is not None
    return Result(
        reference=f"{bucket.uri}/{model}",
        names={f"{bucket.uri}/{model}": new.digest},
        digest=new.digest,
        sequence=pointer.current.sequence,
        uploaded=len(sent),
        uploaded_bytes=sum(sent.values()),
        reused=len(new.files) - len(sent),
        moved=moved,
    )


def _current(bucket: Bucket, entry: Entry) -> Published | None:
    """The current release: no collection touches what it names. None if it is damaged: all is sent again."""
    try:
        return read(bucket, entry.digest)
    except PublishError:
        return None


def read(bucket: Bucket, digest: str) -> Published:
    """A release of a bucket by its digest; raises PublishError."""
    document = _document(bucket, digest)
    named = msgspec.json.decode(document).get("manifest", "")
    return releases.load(document, _document(bucket, named), source=f"{bucket.uri}@{digest}")


def _document(bucket: Bucket, digest: str) -> bytes:
    found = bucket.get(document_key(digest), releases.MAX_BYTES)
    if found is None:
        raise PublishError(f"{bucket.uri}/{document_key(digest)} is not there; was this release collected?")
    if (actual := releases.digest_of(found[0])) != digest:
        raise PublishError(f"{bucket.uri}/{document_key(digest)} hashes to {actual}; publish this release again")
    return found[0]


def _send_all(
    bucket: Bucket,
    folder: Path,
    files: Mapping[str, ProfileFile],
    safe: Mapping[str, ProfileFile],
    log: Log,
) -> dict[str, int]:
    """Send what is not there, or may not stay: uri -> bytes sent. Raises PublishError that names each bad file."""

    def send(file: ProfileFile) -> int | None:
        there = bucket.head(file.uri)
        if there is not None and there.size_bytes == file.size_bytes and (file.uri in safe or _is_fresh(there)):
            return None
        log(f"sending {file.path} ({file.size_bytes / 1e6:.1f} MB) to {bucket.uri}/{file.uri}")
        return bucket.put_file(file.uri, folder / package.ROOT / file.uri, file.checksum.removeprefix("blake3:"))

    sent, problems = dict[str, int](), list[Exception]()
    with ThreadPoolExecutor(BLOBS_AT_ONCE) as pool:
        waiting = {uri: pool.submit(send, file) for uri, file in sorted(files.items())}
        for uri, each in waiting.items():
            try:
                if (count := each.result()) is not None:
                    sent[uri] = count
            except (PublishError, Damaged) as error:
                problems.append(error)
            except OSError as error:
                problems.append(PublishError(f"{error.filename}: {error.strerror}; run the build again"))
    if problems:
        raise nothing_published(bucket.uri, problems)
    return sent


def _is_fresh(there: Object) -> bool:
    return there.server_time is not None and there.server_time - there.modified < FRESH


def _move(bucket: Bucket, new: Published, old: Pointer | None, seen: Object | None, *, guarded: bool) -> Pointer:
    """Make `new` the current release, if `old` still is; raises OvertakenError."""
    entry = Entry(
        sequence=old.current.sequence + 1 if old else 1,
        digest=new.digest,
        release=new.document.release,
        published_at=datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
    )
    listed = (entry, *(old.releases if old else ()))[:HISTORY]
    pointer = Pointer(schema_version=1, model=new.document.model, releases=listed)
    key, data = pointer_key(pointer.model), canonical(msgspec.to_builtins(pointer))
    try:
        bucket.swap(key, data, seen)
    except Overtaken:
        pass
    except Unconditional:
        if guarded:
            raise PublishError(UNGUARDED.format(bucket.uri)) from None
        before = bucket.get(key, releases.MAX_BYTES)
        if (before[1].etag if before else None) == (seen.etag if seen else None):
            bucket.put(key, data)
    # What stands now decides, not the answer: an answer may be lost and the write be done.
    now = bucket.get(key, releases.MAX_BYTES)
    found = read_pointer(now[0], f"{bucket.uri}/{key}") if now else None
    if found is None or entry not in found.releases:
        theirs = (
            f"{found.current.release} ({found.current.digest}, number {found.current.sequence})" if found else "none"
        )
        raise OvertakenError(
            f"{bucket.uri}/{key}: somebody else published meanwhile; now current: {theirs}. This release was not made "
            "current; look at it with `enginery diff`, then publish again if yours should follow it"
        )
    return found
