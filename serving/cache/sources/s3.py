"""Read objects of S3 and of servers that speak it: the only module that imports boto3."""

from __future__ import annotations

import os
import ssl
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote, urlsplit

from serving.cache.sources.base import Location, Opened, SourceError, Transient

if TYPE_CHECKING:
    from botocore.exceptions import ClientError

SYSTEM_CERTIFICATES = Path("/etc/ssl/certs/ca-certificates.crt")
_PASSING = ("SlowDown", "RequestTimeout", "InternalError", "ServiceUnavailable", "ThrottlingException", "Throttling")


class S3Source:
    """s3://bucket/key by boto3's own settings (AWS_ENDPOINT_URL, AWS_PROFILE, keys, roles); without keys: unsigned."""

    def __init__(self) -> None:
        try:
            import boto3
            from botocore import UNSIGNED
            from botocore.config import Config
            from botocore.exceptions import BotoCoreError
        except ImportError:
            raise SourceError("s3:// needs the Python package boto3, which is not installed here") from None
        try:
            session = boto3.Session()
            signed: dict[str, Any] = {} if session.get_credentials() else {"signature_version": UNSIGNED}
            self._client = session.client(
                "s3",
                region_name=session.region_name or "us-east-1",
                verify=_certificates(),
                config=Config(
                    connect_timeout=10,
                    read_timeout=30,
                    retries={"total_max_attempts": 1},  # serving.cache.download asks again, from where it was
                    response_checksum_validation="when_required",  # ours is checked, and not every server sends one
                    **signed,
                ),
            )
        except (BotoCoreError, ValueError) as error:
            raise SourceError(f"the AWS settings cannot be used: {error}") from None

    def open(self, location: Location, offset: int, version: str) -> Opened:
        from botocore.exceptions import BotoCoreError

        answer = self._get(location, offset, version)
        if answer is None:
            return self.open(location, 0, "")
        total = answer.get("ContentRange", "").rpartition("/")[2]
        start = offset if answer["ResponseMetadata"]["HTTPStatusCode"] == 206 else 0
        body = answer["Body"]

        def read(num_bytes: int) -> bytes:
            try:
                return bytes(body.read(num_bytes))
            except (BotoCoreError, OSError) as error:
                raise failure(error) from None
            except Exception as error:  # urllib3's own errors come through botocore's stream
                raise Transient(f"the connection failed: {error}") from None

        size = int(total) if total.isdecimal() else answer["ContentLength"]
        return Opened(read=read, close=body.close, offset=start, size_bytes=size, version=answer.get("ETag", ""))

    def _get(self, location: Location, offset: int, version: str) -> Any | None:
        """The answer from `offset` on; None when the object has changed since, or is shorter."""
        from botocore.exceptions import BotoCoreError, ClientError

        parts = urlsplit(location.uri)
        bucket, key = parts.netloc, unquote(parts.path).lstrip("/")
        if not bucket or not key:
            raise SourceError("is not s3://bucket/key")
        condition: dict[str, str] = {}
        if offset:
            condition = {"Range": f"bytes={offset}-"} | ({"IfMatch": version} if version else {})
        try:
            return self._client.get_object(Bucket=bucket, Key=key, **condition)
        except ClientError as error:
            if offset and error.response["ResponseMetadata"]["HTTPStatusCode"] in (412, 416):
                return None
            raise _refused(error) from None
        except BotoCoreError as error:
            raise failure(error) from None


def _certificates() -> str | None:
    """AWS's own variable first (None: boto3 reads it), then what every other source trusts here."""
    if os.environ.get("AWS_CA_BUNDLE"):
        return None
    if bundle := os.environ.get("SSL_CERT_FILE"):
        return bundle
    bundle = ssl.get_default_verify_paths().cafile
    return bundle or (str(SYSTEM_CERTIFICATES) if SYSTEM_CERTIFICATES.is_file() else None)


def _refused(error: ClientError) -> SourceError:
    details = error.response["Error"]
    status = error.response["ResponseMetadata"]["HTTPStatusCode"]
    words = f"the S3 server answers {status} {details.get('Code', '')}: {details.get('Message', '')}".rstrip(": ")
    if status >= 500 or status == 429 or details.get("Code") in _PASSING:
        return Transient(words)
    remedy = {
        403: "; give a key that may read it (AWS_ACCESS_KEY_ID, AWS_PROFILE, or a role)",
        404: "; it is not there: look at NIM_REPOSITORY_OVERRIDE and AWS_ENDPOINT_URL",
    }
    return SourceError(words + remedy.get(status, ""))


def failure(error: Exception) -> SourceError:
    """What an error of botocore means: those of the connection pass."""
    from botocore import exceptions as botocore

    if isinstance(error, botocore.SSLError):
        return SourceError(f"the server's certificate is not trusted: {error}; set AWS_CA_BUNDLE or SSL_CERT_FILE")
    # HTTPClientError: no connection, no answer in time, closed; the others: ended early.
    passing = (
        botocore.ConnectionError,
        botocore.HTTPClientError,
        botocore.IncompleteReadError,
        botocore.ResponseStreamingError,
        botocore.ReadTimeoutError,
        OSError,
    )
    if isinstance(error, passing):
        return Transient(f"the connection failed: {error}")
    return SourceError(f"{type(error).__name__}: {error}")
