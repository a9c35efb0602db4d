"""A folder of an S3 bucket, written safely: checked parts, conditional writes, the server's clock. Knows boto3."""

from __future__ import annotations

import base64
import hashlib
import os
from collections import deque
from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from blake3 import blake3

from pipelines.errors import PublishError
from pipelines.remote.remedies import s3_answer, s3_failure

PART_BYTES = 8 << 20  # S3 wants at least 5 MiB
MAX_PARTS = 10_000  # S3 allows no more
PARTS_AT_ONCE = 4


class Overtaken(Exception):
    """The object is not in the state that the write was made conditional on."""


class Unconditional(Exception):
    """The server refuses conditional writes (OpenStack Swift answers 501)."""


class Damaged(Exception):
    """A local file whose bytes are not those of its name."""


@dataclass(frozen=True, kw_only=True)
class Object:
    key: str  # within the folder: "blobs/blake3/ab…"
    size_bytes: int
    modified: datetime
    etag: str
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
                    # The signature covers the body, so that also a server that ignores checksum headers checks it.
                    s3={"payload_signing_enabled": True},
                    request_checksum_calculation="when_required",
                    response_checksum_validation="when_required",
                ),
            )
        except (BotoCoreError, ValueError) as error:
            raise PublishError(f"{uri}: the AWS settings cannot be used: {error}") from None

    def head(self, key: str) -> Object | None:
        with self._explained(key) as said:
            answer = said(lambda: self._client.head_object(Bucket=self._bucket, Key=self._prefix + key), missing=True)
        if answer is None:
            return None
        return Object(
            key=key,
            size_bytes=answer["ContentLength"],
            modified=answer["LastModified"],
            etag=answer["ETag"],
            server_time=_date(answer),
        )

    def get(self, key: str, max_bytes: int) -> tuple[bytes, Object] | None:
        """A small object's bytes; None where there is none."""
        with self._explained(key) as said:
            answer = said(lambda: self._client.get_object(Bucket=self._bucket, Key=self._prefix + key), missing=True)
            if answer is None:
                return None
            data = bytes(said(lambda: answer["Body"].read(max_bytes + 1)))
        if len(data) > max_bytes:
            raise PublishError(f"{self.uri}/{key} has more than {max_bytes} bytes; something else lies there")
        found = Object(
            key=key,
            size_bytes=len(data),
            modified=answer["LastModified"],
            etag=answer["ETag"],
            server_time=_date(answer),
        )
        return data, found

    def put(self, key: str, data: bytes, **more: str) -> None:
        """Write an object at once. Raises Overtaken or Unconditional where `more` has a condition."""
        with self._explained(key) as said:
            said(
                lambda: self._client.put_object(
                    Bucket=self._bucket,
                    Key=self._prefix + key,
                    Body=data,
                    ContentType="application/json" if key.endswith(".json") else "application/octet-stream",
                    **_checksums(data),
                    **more,
                )
            )

    def swap(self, key: str, data: bytes, seen: Object | None) -> None:
        """Write an object if it is still as it was seen (None: if there is still none); else raises Overtaken."""
        self.put(key, data, **({"IfMatch": seen.etag} if seen else {"IfNoneMatch": "*"}))

    def honours_conditions(self, key: str) -> bool:
        """Whether a write whose condition cannot hold is refused. Some servers refuse all such writes, some none."""
        from botocore.exceptions import ClientError

        def impossible() -> bool:
            try:
                where = {"Bucket": self._bucket, "Key": self._prefix + key}
                self._client.put_object(**where, Body=b"", ContentMD5=_checksums(b"")["ContentMD5"], IfMatch='"none"')
            except ClientError as error:
                if error.response["Error"].get("Code") in ("PreconditionFailed", "NoSuchKey", "412"):
                    return True
                raise
            self.delete(key)
            return False

        with self._explained(key) as said:
            try:
                return bool(said(impossible))
            except Unconditional:
                return False

    def put_file(self, key: str, path: Path, digest: str) -> int:
        """Send a file whose BLAKE3 must be `digest`, reading it once; in parts if it is large. Its number of bytes.

        The object appears when the last byte was hashed and found right, or not at all; raises Damaged.
        """
        size = path.stat().st_size
        if size <= PART_BYTES:
            data = path.read_bytes()
            _check(path, blake3(data).hexdigest(), digest)
            self.put(key, data)
            return size
        with self._explained(key) as said:
            made = said(lambda: self._client.create_multipart_upload(Bucket=self._bucket, Key=self._prefix + key))
        which = {"Bucket": self._bucket, "Key": self._prefix + key, "UploadId": made["UploadId"]}
        try:
            listed = {"Parts": self._send_parts(key, path, digest, which)}
            with self._explained(key) as said:
                done = said(
                    lambda: self._client.complete_multipart_upload(**which, MultipartUpload=listed), missing=True
                )
            # A reply that was lost: the client asked again, and the upload is over.
            if done is None and ((there := self.head(key)) is None or there.size_bytes != size):
                raise PublishError(f"{self.uri}/{key}: its upload was ended by somebody else; publish again")
        except BaseException:
            try:
                self._client.abort_multipart_upload(**which)
            except Exception as error:  # gc removes what is left of it; the first failure is the one to tell
                del error
            raise
        return size

    def _send_parts(self, key: str, path: Path, digest: str, which: Mapping[str, str]) -> list[dict[str, Any]]:
        hasher, sent = blake3(max_threads=blake3.AUTO), list[dict[str, Any]]()
        part_bytes = max(PART_BYTES, -(-path.stat().st_size // MAX_PARTS))

        def send(number: int, data: bytes) -> dict[str, Any]:
            with self._explained(key) as said:
                answer = said(
                    lambda: self._client.upload_part(**which, PartNumber=number, Body=data, **_checksums(data))
                )
            return {"PartNumber": number, "ETag": answer["ETag"]}

        waiting: deque[Future[dict[str, Any]]] = deque()
        with ThreadPoolExecutor(PARTS_AT_ONCE) as pool, path.open("rb") as file:
            while data := file.read(part_bytes):
                hasher.update(data)
                waiting.append(pool.submit(send, len(sent) + len(waiting) + 1, data))
                if len(waiting) == PARTS_AT_ONCE:  # no more of the file in memory than is being sent
                    sent.append(waiting.popleft().result())
            sent += [each.result() for each in waiting]
        _check(path, hasher.hexdigest(), digest)
        return sent

    def objects(self, prefix: str) -> Iterator[Object]:
        pages = self._client.get_paginator("list_objects_v2").paginate(
            Bucket=self._bucket, Prefix=self._prefix + prefix
        )
        with self._explained(prefix) as said:
            for page in said(lambda: iter(pages)):
                for one in page.get("Contents", []):
                    yield Object(
                        key=one["Key"].removeprefix(self._prefix),
                        size_bytes=one["Size"],
                        modified=one["LastModified"],
                        etag=one["ETag"],
                    )

    def delete(self, key: str) -> None:
        with self._explained(key) as said:
            said(lambda: self._client.delete_object(Bucket=self._bucket, Key=self._prefix + key))

    def uploads(self, prefix: str) -> list[tuple[str, str, datetime]]:
        """(key, id, begun) of the uploads in parts that nobody has ended."""
        with self._explained(prefix) as said:
            pages = self._client.get_paginator("list_multipart_uploads")
            found = said(lambda: list(pages.paginate(Bucket=self._bucket, Prefix=self._prefix + prefix)))
        return [
            (one["Key"].removeprefix(self._prefix), one["UploadId"], one["Initiated"])
            for page in found
            for one in page.get("Uploads", [])
        ]

    def abort(self, key: str, upload: str) -> None:
        with self._explained(key) as said:
            which = {"Bucket": self._bucket, "Key": self._prefix + key, "UploadId": upload}
            said(lambda: self._client.abort_multipart_upload(**which), missing=True)

    @contextmanager
    def _explained(self, key: str) -> Iterator[Any]:
        """Runs calls; a failure becomes a PublishError with its place and a remedy."""
        from botocore.exceptions import BotoCoreError, ClientError
        from urllib3.exceptions import HTTPError

        def said(call: Any, *, missing: bool = False) -> Any:
            try:
                return call()
            except ClientError as error:
                status = error.response["ResponseMetadata"]["HTTPStatusCode"]
                code = error.response["Error"].get("Code", "")
                if missing and status == 404 and code != "NoSuchBucket":
                    return None
                if code == "NoSuchKey":  # of a conditional write: what was seen is gone
                    raise Overtaken from None
                if status in (409, 412) and code in ("PreconditionFailed", "ConditionalRequestConflict", "412"):
                    raise Overtaken from None
                if status == 501:
                    raise Unconditional from None
                raise s3_answer(f"{self.uri}/{key}", error) from None

        try:
            yield said
        except (BotoCoreError, HTTPError, OSError) as error:
            if isinstance(error, OSError) and error.filename:
                raise  # a local file's
            raise s3_failure(f"{self.uri}/{key}", error) from None


def _checksums(data: bytes) -> dict[str, str]:
    """MD5 is what every server checks, SHA-256 what AWS keeps."""
    return {
        "ContentMD5": base64.b64encode(hashlib.md5(data, usedforsecurity=False).digest()).decode(),
        "ChecksumSHA256": base64.b64encode(hashlib.sha256(data).digest()).decode(),
    }


def _check(path: Path, found: str, digest: str) -> None:
    if found != digest:
        raise Damaged(f"{path} hashes to blake3:{found}; remove it and run the build again")


def _date(answer: Mapping[str, Any]) -> datetime:
    """The server's own time: ages are differences on one clock, whatever this machine's clock says."""
    try:
        return parsedate_to_datetime(answer["ResponseMetadata"]["HTTPHeaders"]["date"]).replace(tzinfo=UTC)
    except (KeyError, ValueError):
        return datetime.now(UTC)
