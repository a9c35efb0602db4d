"""What a failure of an S3 server or a registry means to a person, what helps, and whether it may pass by itself."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pipelines.errors import PublishError, UnreachableError


def words_of(error: Any, status: int, code: str) -> str:
    words = f"the S3 server answers {status} {code}: {error.response['Error'].get('Message', '')}".rstrip(": ")
    remedies = {
        401: "give a key that may write there (AWS_ACCESS_KEY_ID, AWS_PROFILE, or a role)",
        403: "give a key that may read, write and list there (AWS_ACCESS_KEY_ID, AWS_PROFILE, or a role)",
        404: "make the bucket first, or look at --to and AWS_ENDPOINT_URL",
    }
    return f"{words}; {remedies[status]}" if status in remedies else words


def passes(error: Exception) -> bool:
    """Whether the same may well succeed a minute later: not where a key or a certificate is wrong."""
    from botocore import exceptions as botocore

    return not isinstance(error, botocore.NoCredentialsError | botocore.PartialCredentialsError | botocore.SSLError)


def nothing_published(where: str, errors: Sequence[Exception]) -> PublishError:
    """Everything that kept files from being sent, as one error; one that may pass, if each of them may."""
    kind = UnreachableError if all(isinstance(error, UnreachableError) for error in errors) else PublishError
    return kind("\n".join([f"{where}: nothing was published:", *(f"  {error}" for error in errors)]))


def unreachable(error: Exception) -> str:
    from botocore import exceptions as botocore

    if isinstance(error, botocore.NoCredentialsError):
        return "no AWS credentials are known here; set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE"
    if isinstance(error, botocore.SSLError):
        return f"the server's certificate is not trusted: {error}; set AWS_CA_BUNDLE or SSL_CERT_FILE"
    return f"{error}; look at AWS_ENDPOINT_URL, then publish again: what was sent is kept"
