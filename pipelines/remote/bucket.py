"""A folder of an S3 bucket: listings, checked files, conditional writes, the server's clock. Knows boto3."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import IO, Any
from urllib.parse import urlsplit

from blake3 import blake3

from pipelines.errors import PublishError
from pipelines.remote.remedies import s3_answer, s3_failure

PART_BYTES = 8 << 20  # S3 wants at least 5 MiB
MAX_PARTS = 10_000  # S3 allows no more
PARTS_AT_ONCE = 4


class Overtaken(Exception):
    """The object is not in the state that the write was made conditional on."""


class Damaged(Exception):
    """A local file whose bytes are not those of its name."""


@dataclass(frozen=True, kw_only=True)
class Object:
    """One object of a bucket, as a listing or an answer describes it."""

    key: str  # within the folder: "blobs/blake3/ab…"
    size_bytes: int
    modified: datetime
    etag: str  # changes with the bytes
    server_time: datetime | None = None  # when the server said so; not in listings


class Bucket:
    """s3://bucket/prefix, with boto3's own settings (AWS_ENDPOINT_URL, AWS_PROFILE, keys, roles)."""

    def __init__(self, uri: str) -> None:
        import boto3
        from botocore.config import Config
        from botocore.exceptions import BotoCoreError

        parts = urlsplit(uri)
        if parts.scheme != "s3" or not parts.netloc or parts.query or parts.fragment:
            raise PublishError(f"{uri} is not s3://BUCKET or s3://BUCKET/PREFIX")
        self.uri = uri.rstrip("/")
        self._bucket, prefix = parts.netloc, parts.path.strip("/")
        self._prefix = f"{prefix}/" if prefix else ""
        try:
            session = boto3.Session()
            self._client: Any = session.client(
                "s3",
                region_name=session.region_name or "us-east-1",
                verify=os.environ.get("AWS_CA_BUNDLE") or os.environ.get("SSL_CERT_FILE") or None,
                config=Config(
                    connect_timeout=10,
                    read_timeout=60,
                    retries={"mode": "standard", "total_max_attempts": 5},
                    max_pool_connections=32,
                    # Each request is signed over the SHA-256 of its body. Checksums of a newer kind make boto3 send a
                    # body in a form that other S3 servers refuse (docs/adr/0017-one-s3-client.md).
                    s3={"payload_signing_enabled": True},
                    request_checksum_calculation="when_required",
                    response_checksum_validation="when_required",
                ),
            )
        except (BotoCoreError, ValueError) as error:
            raise PublishError(f"{uri}: the AWS settings cannot be used: {error}") from None

    def head(self, key: str) -> Object | None:
        answer = self._call("head_object", key, missing=True)
        return None if answer is None else _object(key, answer)

    def get(self, key: str, max_bytes: int) -> tuple[bytes, Object] | None:
        """A small object's bytes; None where there is none."""
        answer = self._call("get_object", key, missing=True)
        if answer is None:
            return None
        data, body = b"", answer["Body"]
        # To the empty chunk: only there boto3 looks whether all of it came.
        while len(data) <= max_bytes and (chunk := self._explained(key, lambda: body.read(1 << 20))):
            data += chunk
        if len(data) > max_bytes:
            raise PublishError(f"{self.uri}/{key} has more than {max_bytes} bytes; something else lies there")
        return data, _object(key, answer)

    def get_file(self, listed: Object, target: Path) -> None:
        """Write an object into a file as it was listed. Raises PublishError if it changed since."""
        try:
            body = self._call("get_object", listed.key, IfMatch=listed.etag)["Body"]
        except Overtaken:
            raise PublishError(f"{self.uri}/{listed.key} changed while it was read; try again") from None
        with target.open("wb") as file:
            while chunk := self._explained(listed.key, lambda: body.read(1 << 20)):
                file.write(chunk)
        if target.stat().st_size != listed.size_bytes:
            raise PublishError(f"{self.uri}/{listed.key} came with another size than it is listed with; try again")

    def put(self, key: str, data: bytes, **condition: str) -> None:
        """Write an object at once. Raises Overtaken where a condition does not hold."""
        kind = "application/json" if key.endswith(".json") else "application/octet-stream"
        arguments: dict[str, Any] = {"Body": data, "ContentType": kind, **condition}
        self._call("put_object", key, **arguments)

    def swap(self, key: str, data: bytes, seen: Object | None) -> None:
        """Write an object if it is still as it was seen (None: if there is still none); else raises Overtaken."""
        self.put(key, data, **({"IfMatch": seen.etag} if seen else {"IfNoneMatch": "*"}))

    def honours_conditions(self, key: str) -> bool:
        """Whether a write whose condition cannot hold is refused. Some servers refuse all such writes, some none."""
        from botocore.exceptions import ClientError

        def impossible() -> bool:
            try:
                self._client.put_object(Bucket=self._bucket, Key=self._prefix + key, Body=b"", IfMatch='"none"')
            except ClientError as error:
                if error.response["ResponseMetadata"]["HTTPStatusCode"] == 501:
                    return False
                if error.response["Error"].get("Code") in ("PreconditionFailed", "NoSuchKey", "412"):
                    return True
                raise
            self.delete(key)
            return False

        return bool(self._explained(key, impossible))

    def put_file(self, key: str, path: Path, digest: str) -> int:
        """Send a file whose BLAKE3 must be `digest`, reading it once; in parts if it is large. Its number of bytes.

        The object appears when the last byte was hashed and found right, or not at all; raises Damaged.
        """
        from boto3.s3.transfer import TransferConfig

        size = path.stat().st_size
        part_bytes = max(PART_BYTES, -(-size // MAX_PARTS))
        config = TransferConfig(
            multipart_threshold=part_bytes,
            multipart_chunksize=part_bytes,
            max_concurrency=PARTS_AT_ONCE,
            preferred_transfer_client="classic",
        )
        config.max_in_memory_upload_chunks = PARTS_AT_ONCE
        with path.open("rb") as file:
            source = _Checked(path, file, size, digest)
            where = {"Bucket": self._bucket, "Key": self._prefix + key}
            sent = self._explained(
                key, lambda: self._client.upload_fileobj(source, **where, Config=config) or True, missing=True
            )
        # A reply that was lost: the client asked again to end an upload in parts that was over.
        if sent is None and ((there := self.head(key)) is None or there.size_bytes != size):
            raise PublishError(f"{self.uri}/{key}: its upload was ended by somebody else; publish again")
        return size

    def objects(self, prefix: str) -> Iterator[Object]:
        for page in self._pages("list_objects_v2", prefix):
            for one in page.get("Contents", []):
                key = one["Key"].removeprefix(self._prefix)
                yield Object(key=key, size_bytes=one["Size"], modified=one["LastModified"], etag=one["ETag"])

    def delete(self, key: str) -> None:
        self._call("delete_object", key)

    def uploads(self, prefix: str) -> list[tuple[str, str, datetime]]:
        """(key, id, begun) of the uploads in parts that nobody has ended."""
        return [
            (one["Key"].removeprefix(self._prefix), one["UploadId"], one["Initiated"])
            for page in self._pages("list_multipart_uploads", prefix)
            for one in page.get("Uploads", [])
        ]

    def abort(self, key: str, upload: str) -> None:
        self._call("abort_multipart_upload", key, missing=True, UploadId=upload)

    def _pages(self, operation: str, prefix: str) -> Iterator[Mapping[str, Any]]:
        pages = iter(self._client.get_paginator(operation).paginate(Bucket=self._bucket, Prefix=self._prefix + prefix))
        while (page := self._explained(prefix, lambda: next(pages, None))) is not None:
            yield page

    def _call(self, operation: str, key: str, *, missing: bool = False, **arguments: Any) -> Any:
        call = getattr(self._client, operation)
        return self._explained(
            key, lambda: call(Bucket=self._bucket, Key=self._prefix + key, **arguments), missing=missing
        )

    def _explained(self, key: str, call: Callable[[], Any], *, missing: bool = False) -> Any:
        """Call; a failure becomes a PublishError with its place and a remedy. missing: None for what is not there."""
        from botocore.exceptions import BotoCoreError, ClientError
        from urllib3.exceptions import HTTPError

        try:
            return call()
        except ClientError as error:
            status = error.response["ResponseMetadata"]["HTTPStatusCode"]
            code = error.response["Error"].get("Code", "")
            if missing and status == 404 and code != "NoSuchBucket":
                return None
            # NoSuchKey: of a conditional write, what was seen is gone
            if code in ("NoSuchKey", "PreconditionFailed", "ConditionalRequestConflict", "412"):
                raise Overtaken from None
            raise s3_answer(f"{self.uri}/{key}", error) from None
        except (BotoCoreError, HTTPError, OSError) as error:
            if isinstance(error, OSError) and error.filename:
                raise  # a local file's
            raise s3_failure(f"{self.uri}/{key}", error) from None


class _Checked:
    """A file as it is sent: its last bytes are given only if its BLAKE3 is right, else `read` raises Damaged."""

    def __init__(self, path: Path, file: IO[bytes], size_bytes: int, digest: str) -> None:
        self._path, self._file, self._left, self._digest = path, file, size_bytes, digest
        self._hasher = blake3(max_threads=blake3.AUTO)

    def read(self, num_bytes: int = -1) -> bytes:
        data = self._file.read(num_bytes)
        self._hasher.update(data)
        self._left -= len(data)
        if (self._left <= 0 or not data) and (digest := self._hasher.hexdigest()) != self._digest:
            raise Damaged(f"{self._path} hashes to blake3:{digest}; remove it and run the build again")
        return data


def _object(key: str, answer: Mapping[str, Any]) -> Object:
    return Object(
        key=key,
        size_bytes=answer["ContentLength"],
        modified=answer["LastModified"],
        etag=answer["ETag"],
        server_time=_date(answer),
    )


def _date(answer: Mapping[str, Any]) -> datetime:
    """The server's own time: ages are differences on one clock, whatever this machine's clock says."""
    try:
        return parsedate_to_datetime(answer["ResponseMetadata"]["HTTPHeaders"]["date"]).replace(tzinfo=UTC)
    except (KeyError, ValueError):
        return datetime.now(UTC)
