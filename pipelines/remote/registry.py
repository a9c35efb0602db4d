"""Read and write one repository of an OCI registry: addresses, logins, blobs, manifests, tags, referrers. Knows HTTP.

Protocol: github.com/opencontainers/distribution-spec; tokens: distribution.github.io/distribution/spec/auth/token.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urljoin, urlsplit

import requests

from pipelines.errors import PublishError, UnreachableError
from pipelines.image import oci
from pipelines.store.files import canonical
from pipelines.store.store import Blob
from serving.cache.sources.base import SourceError
from serving.cache.sources.http import LOCAL_HOSTS
from serving.cache.sources.oci import MANIFEST_TYPES, MAX_MANIFEST_BYTES, docker_logins

INDEX_TYPE = "application/vnd.oci.image.index.v1+json"
ATTEMPTS = 4
TIMEOUT_S = (10, 120)
_ADDRESS = re.compile(
    r"(?:oci(?P<plain>\+http)?://)?(?P<host>[A-Za-z0-9.-]+(?::\d+)?|\[[0-9a-f:]+\](?::\d+)?)/"
    r"(?P<repository>[a-z0-9]+(?:[._/-]+[a-z0-9]+)*)"
    r"(?::(?P<tag>\w[\w.-]{0,127}))?(?:@(?P<digest>sha256:[0-9a-f]{64}))?"
)
_PARAMETER = re.compile(r'(\w+)="([^"]*)"')


@dataclass(frozen=True, kw_only=True)
class Address:
    """oci://HOST/REPOSITORY:TAG or …@sha256:…; oci+http:// (and any registry of this machine) is without TLS."""

    host: str
    repository: str
    tag: str | None
    digest: str | None
    scheme: str = "oci"  # as it was written

    @property
    def plain(self) -> bool:
        return self.scheme == "oci+http" or urlsplit(f"//{self.host}").hostname in LOCAL_HOSTS

    @property
    def base(self) -> str:
        return f"{'http' if self.plain else 'https'}://{self.host}/v2/{self.repository}"

    @property
    def reference(self) -> str:
        return self.digest or self.tag or "latest"

    def at(self, reference: str) -> str:
        """What `docker pull` takes: host/repository:tag or host/repository@sha256:…"""
        return f"{self.host}/{self.repository}{'@' if reference.startswith('sha256:') else ':'}{reference}"

    def uri(self, reference: str) -> str:
        """The same as a repository of the server."""
        return f"{self.scheme}://{self.at(reference)}"


def parse(text: str) -> Address:
    """An address; raises PublishError."""
    match = _ADDRESS.fullmatch(text)
    if match is None:
        raise PublishError(
            f"{text} is not oci://REGISTRY/REPOSITORY:TAG (lower-case; a digest instead of the tag will do)"
        )
    return Address(
        host=match["host"],
        repository=match["repository"],
        tag=match["tag"],
        digest=match["digest"],
        scheme=f"oci{match['plain'] or ''}",
    )


class Registry:
    """One repository, with the logins of docker's config.json or a bearer token (ENGINERY_REPOSITORY_TOKEN)."""

    def __init__(self, address: Address, *, token: str | None = None) -> None:
        self.address = address
        self._session = requests.Session()
        self._authorization: str | None = None
        self._token = token
        try:
            self._login = docker_logins().get(address.host)
        except SourceError as error:
            raise PublishError(str(error)) from None

    def digest_of(self, reference: str) -> str | None:
        """What a tag points to, or whether a digest is there."""
        answer = self._ask("HEAD", f"/manifests/{reference}", accept=(*MANIFEST_TYPES, INDEX_TYPE), missing=True)
        if answer is None:
            return None
        if said := answer.headers.get("Docker-Content-Digest"):
            return str(said)
        found = self.manifest(reference)  # the header may be left out
        return oci.blob_of(found).digest if found else None

    def manifest(self, reference: str) -> bytes | None:
        """A manifest's bytes, by tag or digest."""
        answer = self._ask("GET", f"/manifests/{reference}", accept=(*MANIFEST_TYPES, INDEX_TYPE), missing=True)
        return None if answer is None else self._checked(answer, reference, MAX_MANIFEST_BYTES)

    def blob(self, digest: str, max_bytes: int) -> bytes:
        answer = self._ask("GET", f"/blobs/{digest}", missing=True)
        if answer is None:
            raise PublishError(f"{self.address.at(digest)}: the blob is not there; publish it again")
        return self._checked(answer, digest, max_bytes)

    def _checked(self, answer: requests.Response, reference: str, max_bytes: int) -> bytes:
        data = answer.content
        if len(data) > max_bytes:
            raise PublishError(f"{self.address.at(reference)} has more than {max_bytes} bytes")
        if reference.startswith("sha256:") and (found := oci.blob_of(data).digest) != reference:
            raise PublishError(f"{self.address.at(reference)}: the registry gives bytes that hash to {found}")
        return data

    def missing_blobs(self, reference: str) -> list[str] | None:
        """What a manifest names and the registry has not; None: not even the manifest."""
        if (content := self.manifest(reference)) is None:
            return None
        described = json.loads(content)
        named = [one["digest"] for one in (described["config"], *described["layers"])]
        return [digest for digest in named if self._ask("HEAD", f"/blobs/{digest}", missing=True) is None]

    def push_blob(self, blob: Blob, source: Path | bytes) -> bool:
        """Send a blob if it is not there: whether it was sent. The registry refuses bytes of another digest."""
        if self._ask("HEAD", f"/blobs/{blob.digest}", missing=True) is not None:
            return False

        def send() -> requests.Response:
            begun = self._once("POST", "/blobs/uploads/", {}, b"")
            if begun.status_code != 202:
                return begun
            target = urljoin(begun.url, begun.headers["Location"])
            target += f"{'&' if '?' in target else '?'}digest={blob.digest}"
            headers = {"Content-Type": "application/octet-stream", "Content-Length": str(blob.size_bytes)}
            if isinstance(source, bytes):
                return self._once("PUT", target, headers, source)
            with source.open("rb") as file:
                return self._once("PUT", target, headers, file)

        self._until_done(send, f"blob {blob.digest}")
        return True

    def push_manifest(self, reference: str, content: bytes) -> bool:
        """Write a manifest under a digest or a tag. Whether the registry took note of its subject itself."""
        kind = json.loads(content)["mediaType"]
        answer = self._until_done(
            lambda: self._once("PUT", f"/manifests/{reference}", {"Content-Type": kind}, content), reference
        )
        return "OCI-Subject" in answer.headers

    def referrers(self, digest: str, kind: str) -> list[dict[str, Any]]:
        """Descriptors of the artifacts of a kind that say they belong to a manifest, newest last."""
        answer = self._ask("GET", f"/referrers/{digest}", missing=True, accept=(INDEX_TYPE,))
        data = self.manifest(_fallback_tag(digest)) if answer is None else answer.content
        return [found for found in _listed(data) if found.get("artifactType") == kind]

    def attach(self, content: bytes, subject: str, kind: str) -> str:
        """Push an artifact that belongs to `subject`, and see to it that it is found from there. Its digest."""
        made = oci.blob_of(content)
        if self.push_manifest(made.digest, content):
            return made.digest
        # A registry without the referrers API: the list of them is a tag, which its writers keep themselves
        # (distribution-spec, "Referrers Tag Schema"). No condition guards it, so look whether ours has stayed.
        entry = {**oci.descriptor(oci.MANIFEST_TYPE, made), "artifactType": kind}
        tag = _fallback_tag(subject)
        for _ in range(10):
            there = _listed(self.manifest(tag))
            if entry in there:
                return made.digest
            self.push_manifest(
                tag, canonical({"schemaVersion": 2, "mediaType": INDEX_TYPE, "manifests": [*there, entry]})
            )
        raise PublishError(f"{self.address.at(tag)}: others write it all the time; publish again")

    def _ask(
        self, method: str, path: str, *, accept: tuple[str, ...] = (), missing: bool = False
    ) -> requests.Response | None:
        headers = {"Accept": ", ".join(accept)} if accept else {}
        answer: requests.Response | None = self._until_done(
            lambda: self._once(method, path, headers, None), path, missing=missing
        )
        return answer

    def _until_done(self, call: Callable[[], requests.Response], what: str, *, missing: bool = False) -> Any:
        """Call until it is done: log in where that is asked, try again what passes. None for what is not there."""
        where, failures, logged_in = f"{self.address.host}/{self.address.repository} {what}", 0, False
        while True:
            try:
                answer = call()
            except requests.RequestException as error:
                said = _unreachable(error)
                passes = not isinstance(error, requests.exceptions.SSLError)
            else:
                if answer.status_code < 400:
                    return answer
                if answer.status_code == 404 and missing:
                    return None
                if answer.status_code == 401 and not logged_in:
                    self._log_in(answer)
                    logged_in = True
                    continue
                said, passes = _refusal(answer), answer.status_code in (408, 429) or answer.status_code >= 500
            failures += 1
            if not passes or failures == ATTEMPTS:
                raise (UnreachableError if passes else PublishError)(f"{where}: {said}")
            time.sleep(2 ** (failures - 2))

    def _once(self, method: str, path: str, headers: Mapping[str, str], body: Any) -> requests.Response:
        url = path if "://" in path else self.address.base + path
        ours = urlsplit(url).netloc == self.address.host  # the login is not for where an upload may be sent instead
        login = {"Authorization": self._authorization} if self._authorization and ours else {}
        return self._session.request(method, url, headers={**headers, **login}, data=body, timeout=TIMEOUT_S)

    def _log_in(self, refused: requests.Response) -> None:
        kind, _, rest = refused.headers.get("WWW-Authenticate", "").partition(" ")
        asked = dict(_PARAMETER.findall(rest))
        if self._token is not None and self._authorization is None:
            self._authorization = f"Bearer {self._token}"
        elif kind.lower() == "basic" and self._login:
            self._authorization = f"Basic {self._login}"
        elif kind.lower() == "bearer" and "realm" in asked:
            if urlsplit(asked["realm"]).scheme != "https" and not self.address.plain:
                raise PublishError(f"{self.address.host} sends to {asked['realm']} for a login, which is not https://")
            query = {"scope": f"repository:{self.address.repository}:pull,push"}
            query |= {"service": asked["service"]} if "service" in asked else {}
            login = {"Authorization": f"Basic {self._login}"} if self._login else {}
            answer = self._session.get(asked["realm"], params=query, headers=login, timeout=TIMEOUT_S)
            if answer.status_code >= 400:
                raise PublishError(f"{asked['realm']}: {_refusal(answer)}")
            said = answer.json()
            self._authorization = f"Bearer {said.get('token') or said['access_token']}"


def _fallback_tag(digest: str) -> str:
    return digest.replace(":", "-")


def _listed(index: bytes | None) -> list[dict[str, Any]]:
    return list(json.loads(index).get("manifests", [])) if index else []


def _refusal(answer: requests.Response) -> str:
    words = f"the registry answers {answer.status_code} {answer.reason}"
    with suppress(ValueError, KeyError, TypeError):
        words += "".join(f"; {one['code']}: {one['message']}" for one in answer.json()["errors"])
    remedies = {
        401: "log in (docker login, or ENGINERY_REPOSITORY_TOKEN)",
        403: "this login may not write there",
        413: "a proxy before the registry limits the size of a request; raise it (nginx: client_max_body_size)",
    }
    return f"{words}; {remedies[answer.status_code]}" if answer.status_code in remedies else words


def _unreachable(error: requests.RequestException) -> str:
    if isinstance(error, requests.exceptions.SSLError):
        return f"{error}; oci+http:// is for a registry without TLS, REQUESTS_CA_BUNDLE for a certificate of your own"
    return f"{error}; look at the address, then publish again: what was sent is kept"
