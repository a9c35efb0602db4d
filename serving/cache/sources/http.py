"""Read files by http:// and https://: ranges, redirects, proxies, certificates, and which failures pass."""

from __future__ import annotations

import re
import socket
import ssl
import urllib.error
import urllib.request
from collections.abc import Mapping
from http.client import HTTPException, HTTPMessage, HTTPResponse
from typing import IO, Any
from urllib.parse import urlsplit

from serving.cache.sources.base import Location, Opened, SourceError, Transient

TIMEOUT_S = 30.0  # of one connection and of one read: a large file may take as long as it likes
MAX_REDIRECTS = 5
BUSY = frozenset({408, 425, 429, 500, 502, 503, 504})
LOCAL_HOSTS = frozenset({"localhost", "127.0.0.1", "::1"})
_CONTENT_RANGE = re.compile(r"bytes (\d+)-\d+/(\d+|\*)")


class StatusError(SourceError):
    """A server answered with an error; `headers` say more (WWW-Authenticate)."""

    def __init__(self, message: str, status: int, headers: Mapping[str, str]) -> None:
        super().__init__(message)
        self.status = status
        self.headers = headers


class Http:
    """GET by the standard library: the proxies of the environment, the certificates of the system or SSL_CERT_FILE."""

    def __init__(self, timeout_s: float = TIMEOUT_S) -> None:
        self._timeout_s = timeout_s
        context = ssl.create_default_context()
        handlers = (urllib.request.ProxyHandler(), urllib.request.HTTPSHandler(context=context), _Redirects())
        self._opener = urllib.request.build_opener(*handlers)

    def get(self, url: str, headers: Mapping[str, str], authorization: str | None = None) -> HTTPResponse:
        """The answer to a GET, its body unread. The authorization goes to this host, not to where it redirects."""
        request = urllib.request.Request(url, headers={"Accept-Encoding": "identity", **headers})  # noqa: S310
        if authorization is not None:
            request.add_unredirected_header("Authorization", authorization)
        try:
            answer: HTTPResponse = self._opener.open(request, timeout=self._timeout_s)
        except urllib.error.HTTPError as error:
            error.close()
            if error.code in BUSY:
                raise Transient(f"the server answers {error.code} {error.reason}") from None
            message = f"the server answers {error.code} {error.reason}{_REMEDIES.get(error.code, '')}"
            raise StatusError(message, error.code, dict(error.headers.items())) from None
        except (OSError, HTTPException) as error:
            raise failure(error) from None
        return answer


_REMEDIES = {
    401: ": it wants a login; set ENGINERY_REPOSITORY_TOKEN, or for oci:// mount a docker config.json (DOCKER_CONFIG)",
    403: ": this login may not read it",
    404: ": it is not there; look at NIM_REPOSITORY_OVERRIDE",
    407: ": the proxy wants a login; write it into https_proxy",
}


class HttpSource:
    """`https://host/path` and `http://host/path`."""

    def __init__(self, http: Http, token: str | None = None) -> None:
        self._http = http
        self._token = token

    def open(self, location: Location, offset: int, version: str) -> Opened:
        return open_url(self._http, location.uri, offset, version, self._authorization(location))

    def _authorization(self, location: Location) -> str | None:
        """The token, for the repository's own files; in the clear it goes to this machine only."""
        parts = urlsplit(location.uri)
        if self._token is None or location.within is None:
            return None
        if parts.scheme == "http" and parts.hostname not in LOCAL_HOSTS:
            raise SourceError("ENGINERY_REPOSITORY_TOKEN is not sent over plain http://; use https://")
        return f"Bearer {self._token}"


def open_url(http: Http, url: str, offset: int, version: str, authorization: str | None = None) -> Opened:
    """A file from `offset`, if the server gives ranges and still has that version; else from its start."""
    headers = {"Range": f"bytes={offset}-"} if offset else {}
    if offset and version and not version.startswith("W/"):  # a weak tag must not be used for this (RFC 9110, 13.1.5)
        headers["If-Range"] = version
    try:
        answer = http.get(url, headers, authorization)
    except StatusError as error:
        if error.status != 416 or not offset:  # 416: what is here is as long as the file there, or longer
            raise
        answer = http.get(url, {}, authorization)
    size, start = _whole_size(answer), 0
    if answer.status == 206:
        match = _CONTENT_RANGE.fullmatch(answer.headers.get("Content-Range", ""))
        if match is None or int(match[1]) != offset:
            answer.close()
            raise SourceError(f"the server sends another range than bytes {offset}-: {answer.headers['Content-Range']}")
        start, size = offset, None if match[2] == "*" else int(match[2])

    def read(num_bytes: int) -> bytes:
        try:
            return answer.read1(num_bytes)  # what is there: a process that is killed loses nothing that came
        except (OSError, HTTPException) as error:
            raise failure(error) from None

    etag = answer.headers.get("ETag", "")
    return Opened(read=read, close=answer.close, offset=start, size_bytes=size, version=etag)


def failure(error: BaseException) -> SourceError:
    """What an error of the network means: most of them pass; a certificate that is not trusted does not."""
    reason = getattr(error, "reason", error)
    if isinstance(reason, ssl.SSLCertVerificationError):
        remedy = "set SSL_CERT_FILE to a file with the certificate of its authority, or run update-ca-certificates"
        return SourceError(f"the server's certificate is not trusted: {reason.verify_message}; {remedy}")
    if isinstance(reason, ssl.SSLError) and "WRONG_VERSION_NUMBER" in str(reason):
        return SourceError("the server does not speak TLS; is it an http:// or oci+http:// address?")
    if isinstance(reason, TimeoutError):
        return Transient("the server did not answer in time")
    if isinstance(reason, socket.gaierror):
        return Transient(f"its host's name cannot be resolved: {reason.strerror}")
    return Transient(f"the connection failed: {getattr(reason, 'strerror', None) or reason or type(reason).__name__}")


def _whole_size(answer: HTTPResponse) -> int | None:
    length = answer.headers.get("Content-Length", "")
    return int(length) if length.isascii() and length.isdecimal() and len(length) < 16 else None


class _Redirects(urllib.request.HTTPRedirectHandler):
    """Follow a few, by HTTP only, and never from TLS to the clear."""

    max_redirections = MAX_REDIRECTS

    def redirect_request(
        self, req: urllib.request.Request, fp: IO[bytes], code: int, msg: str, headers: HTTPMessage, newurl: str
    ) -> Any:
        before, after = urlsplit(req.full_url).scheme, urlsplit(newurl).scheme
        if after not in ("http", "https") or (before, after) == ("https", "http"):
            raise SourceError(f"the server redirects from {before}:// to {after}://, which is not followed")
        return super().redirect_request(req, fp, code, msg, headers, newurl)
