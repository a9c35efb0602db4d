"""What a failure of an S3 server or a registry means to a person, what helps, and whether it may pass by itself."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from typing import TYPE_CHECKING

import requests

from pipelines.errors import PublishError, UnreachableError

if TYPE_CHECKING:
    from botocore.exceptions import ClientError

MAY_PASS = frozenset({408, 429, *range(500, 600)})  # statuses after which the same request may succeed
AGAIN = "then try again: what was sent is kept"


def s3_answer(where: str, error: ClientError) -> PublishError:
    """The error for an S3 server's refusal."""
    status = error.response["ResponseMetadata"]["HTTPStatusCode"]
    code, message = (error.response["Error"].get(part, "") for part in ("Code", "Message"))
    words = f"the S3 server answers {status} {code}: {message}".rstrip(": ")
    remedies = {
        401: "give a key that may write there (AWS_ACCESS_KEY_ID, AWS_PROFILE, or a role)",
        403: "give a key that may read, write and list there (AWS_ACCESS_KEY_ID, AWS_PROFILE, or a role)",
        404: "make the bucket first, or look at its name and AWS_ENDPOINT_URL",
    }
    return _error(where, words, remedies.get(status), may_pass=status in MAY_PASS)


def s3_failure(where: str, error: Exception) -> PublishError:
    """The error for a request that no S3 server answered, or not to its end."""
    from botocore import exceptions as botocore

    if isinstance(error, botocore.NoCredentialsError):
        remedy = "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE"
        return _error(where, "no AWS credentials are known here", remedy, may_pass=False)
    if isinstance(error, botocore.SSLError):
        words = f"the server's certificate is not trusted: {error}"
        return _error(where, words, "set AWS_CA_BUNDLE or SSL_CERT_FILE", may_pass=False)
    may_pass = not isinstance(error, botocore.PartialCredentialsError)
    return _error(where, str(error), f"look at AWS_ENDPOINT_URL, {AGAIN}", may_pass=may_pass)


def registry_answer(where: str, answer: requests.Response) -> PublishError:
    """The error for a registry's refusal."""
    words = f"the registry answers {answer.status_code} {answer.reason}"
    with suppress(ValueError, KeyError, TypeError):
        words += "".join(f"; {one['code']}: {one['message']}" for one in answer.json()["errors"])
    remedies = {
        401: "log in (docker login, or ENGINERY_REPOSITORY_TOKEN)",
        403: "this login may not write there",
        413: "a proxy before the registry limits the size of a request; raise it (nginx: client_max_body_size)",
    }
    return _error(where, words, remedies.get(answer.status_code), may_pass=answer.status_code in MAY_PASS)


def registry_failure(where: str, error: requests.RequestException) -> PublishError:
    """The error for a request that no registry answered, or not to its end."""
    if isinstance(error, requests.exceptions.SSLError):
        remedy = "oci+http:// is for a registry without TLS, REQUESTS_CA_BUNDLE for a certificate of your own"
        return _error(where, str(error), remedy, may_pass=False)
    return _error(where, str(error), f"look at the address, {AGAIN}", may_pass=True)


def nothing_published(where: str, errors: Sequence[Exception]) -> PublishError:
    """Everything that kept files from being sent, as one error; one that may pass, if each of them may."""
    kind = UnreachableError if all(isinstance(error, UnreachableError) for error in errors) else PublishError
    return kind("\n".join([f"{where}: nothing was published:", *(f"  {error}" for error in errors)]))


def _error(where: str, words: str, remedy: str | None, *, may_pass: bool) -> PublishError:
    kind = UnreachableError if may_pass else PublishError
    return kind(f"{where}: {words}; {remedy}" if remedy else f"{where}: {words}")
