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
from datetime import timedelta
from pathlib import Path

import msgspec

from pipelines.errors import PublishError
from pipelines.image import package
from pipelines.release import document as releases
from pipelines.release.document import Published
from pipelines.remote import Log
from pipelines.remote.bucket import Bucket, Damaged, Object
from pipelines.remote.pointer import ReleaseEntry, move_pointer, read_pointer
from pipelines.remote.remedies import nothing_published
from pipelines.store.files import digest_of
from serving.contract.profile import ProfileFile

# A collection (gc.py) removes no blob that is younger than MIN_GRACE. A publication sends a blob again that is older
# than FRESH, unless the current release uses it: no blob that it relies on can become old enough before it ends.
FRESH = timedelta(hours=12)
MIN_GRACE = timedelta(hours=24)
UNGUARDED = (
    "{}: this S3 server has no conditional writes, so two publishers could overwrite each other; see to it that only "
    "one runs at a time, and say --unguarded"
)
BLOBS_AT_ONCE = 4  # with 4 parts of 8 MiB each in memory


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


def document_key(digest: str) -> str:
    return f"blobs/{digest.replace(':', '/')}"


def publish(folder: Path, to: str, *, guarded: bool = True, log: Log = lambda _: None) -> Result:
    """Publish dist/MODEL to s3://BUCKET/PREFIX. Readers see the release before or this one, each complete.

    guarded=False: move the pointer also where the server has no conditional writes; then one publisher at a time is the
    caller's care. Raises OvertakenError if somebody else published meanwhile, PublishError for all else.
    """
    new = releases.of_folder(folder)
    model, bucket = new.document.model, Bucket(to)
    seen = read_pointer(bucket, model)
    pointer = seen[0] if seen else None
    moved = pointer is None or pointer.current.digest != new.digest
    conditional = moved and bucket.honours_conditions(f"models/{model}/condition")
    if moved and guarded and not conditional:
        raise PublishError(UNGUARDED.format(bucket.uri))
    old = _current(bucket, pointer.current) if pointer else None
    sent = _send_all(bucket, folder, new.files, old.files if old else {}, log)
    for digest, data in ((new.document.manifest, new.manifest_bytes), (new.digest, new.dump())):
        if old is None or digest not in (old.document.manifest, old.digest):
            bucket.put(document_key(digest), data)
    if pointer is None or moved:
        release = new.document.release
        pointer = move_pointer(bucket, model, digest=new.digest, release=release, seen=seen, conditional=conditional)
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


def _current(bucket: Bucket, entry: ReleaseEntry) -> Published | None:
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
    stored = bucket.get(document_key(digest), releases.MAX_BYTES)
    if stored is None:
        raise PublishError(f"{bucket.uri}/{document_key(digest)} is not there; was this release collected?")
    if (actual := digest_of(stored[0])) != digest:
        raise PublishError(f"{bucket.uri}/{document_key(digest)} hashes to {actual}; publish this release again")
    return stored[0]


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
