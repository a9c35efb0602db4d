"""Read and write one repository of an OCI registry: blobs, manifests, tags, referrers. Knows HTTP.

Protocol: github.com/opencontainers/distribution-spec. Why no client of others: docs/adr/0013-own-registry-client.md.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any
from urllib.parse import urljoin

import requests

from pipelines.errors import PublishError, UnreachableError
from pipelines.image import oci
from pipelines.remote.address import Address
from pipelines.remote.login import TIMEOUT_S, Login, retrying
from pipelines.remote.remedies import registry_answer, registry_failure
from pipelines.store.files import canonical
from pipelines.store.store import Blob
from serving.cache.sources.oci import MANIFEST_TYPES, MAX_MANIFEST_BYTES

INDEX_TYPE = "application/vnd.oci.image.index.v1+json"
UPLOADS = 4  # of one blob, where they break
_ACCEPTED = {"Accept": ", ".join((*MANIFEST_TYPES, INDEX_TYPE))}


class Registry:
    """One repository, with the logins of docker's config.json or a bearer token (ENGINERY_REPOSITORY_TOKEN)."""

    def __init__(self, address: Address, *, token: str | None = None) -> None:
        self.address = address
        self._session = retrying()
        self._uploads = requests.Session()  # an upload that broke cannot go on: it begins anew
        self._session.auth = self._uploads.auth = Login(address, token=token)

    def digest_of(self, reference: str) -> str | None:
        """What a tag points to, or whether a digest is there."""
        answer = self._ask("HEAD", f"/manifests/{reference}", _ACCEPTED)
        if answer is None:
            return None
        if digest := answer.headers.get("Docker-Content-Digest"):
            return str(digest)
        content = self.manifest(reference)  # the header may be left out
        return oci.blob_of(content).digest if content else None

    def manifest(self, reference: str) -> bytes | None:
        """A manifest's bytes, by tag or digest."""
        answer = self._ask("GET", f"/manifests/{reference}", _ACCEPTED)
        return None if answer is None else self._checked(answer, reference, MAX_MANIFEST_BYTES)

    def blob(self, digest: str, max_bytes: int) -> bytes:
        answer = self._ask("GET", f"/blobs/{digest}")
        if answer is None:
            raise PublishError(f"{self.address.at(digest)}: the blob is not there; publish it again")
        return self._checked(answer, digest, max_bytes)

    def _checked(self, answer: requests.Response, reference: str, max_bytes: int) -> bytes:
        data = answer.content
        if len(data) > max_bytes:
            raise PublishError(f"{self.address.at(reference)} has more than {max_bytes} bytes")
        if reference.startswith("sha256:") and (digest := oci.blob_of(data).digest) != reference:
            raise PublishError(f"{self.address.at(reference)}: the registry gives bytes that hash to {digest}")
        return data

    def missing_blobs(self, reference: str) -> list[str] | None:
        """What a manifest names and the registry has not; None: not even the manifest."""
        if (content := self.manifest(reference)) is None:
            return None
        described = json.loads(content)
        named = [part["digest"] for part in (described["config"], *described["layers"])]
        return [digest for digest in named if not self._has(digest)]

    def push_blob(self, blob: Blob, source: Path | bytes) -> bool:
        """Send a blob if it is not there: whether it was sent. The registry refuses bytes of another digest."""
        for _ in range(UPLOADS - 1):
            with suppress(UnreachableError):
                return self._upload(blob, source)
        return self._upload(blob, source)

    def _upload(self, blob: Blob, source: Path | bytes) -> bool:
        if self._has(blob.digest):
            return False
        begun = self._send("POST", "/blobs/uploads/", {}, b"")
        target = urljoin(begun.url, begun.headers["Location"])
        target += f"{'&' if '?' in target else '?'}digest={blob.digest}"
        headers = {"Content-Type": "application/octet-stream", "Content-Length": str(blob.size_bytes)}
        if isinstance(source, bytes):
            self._send("PUT", target, headers, source, session=self._uploads)
        else:
            with source.open("rb") as file:
                self._send("PUT", target, headers, file, session=self._uploads)
        return True

    def _has(self, digest: str) -> bool:
        return self._ask("HEAD", f"/blobs/{digest}") is not None

    def push_manifest(self, reference: str, content: bytes) -> bool:
        """Write a manifest under a digest or a tag. Whether the registry took note of its subject itself."""
        media_type = {"Content-Type": json.loads(content)["mediaType"]}
        return "OCI-Subject" in self._send("PUT", f"/manifests/{reference}", media_type, content).headers

    def referrers(self, digest: str, artifact_type: str) -> list[dict[str, Any]]:
        """Descriptors of the artifacts of a type that say they belong to a manifest, in no order."""
        answer = self._ask("GET", f"/referrers/{digest}", {"Accept": INDEX_TYPE})
        index = self.manifest(_fallback_tag(digest)) if answer is None else answer.content
        return [referrer for referrer in self._listed(index) if referrer.get("artifactType") == artifact_type]

    def attach(self, content: bytes, subject: str) -> str:
        """Push an artifact that belongs to `subject`, and see to it that it is found from there. Its digest."""
        manifest, blob = json.loads(content), oci.blob_of(content)
        if self.push_manifest(blob.digest, content):
            return blob.digest
        # A registry without the referrers API: the list of them is a tag, which its writers keep themselves
        # (distribution-spec, "Referrers Tag Schema"). No condition guards it, so look whether ours has stayed.
        entry = {
            **oci.descriptor(oci.MANIFEST_TYPE, blob),
            "artifactType": manifest["artifactType"],
            "annotations": manifest["annotations"],
        }
        tag = _fallback_tag(subject)
        for _ in range(10):
            listed = self._listed(self.manifest(tag))
            if entry in listed:
                return blob.digest
            index = {"schemaVersion": 2, "mediaType": INDEX_TYPE, "manifests": [*listed, entry]}
            self.push_manifest(tag, canonical(index))
        raise PublishError(f"{self.address.at(tag)}: others write it all the time; publish again")

    def _listed(self, index: bytes | None) -> list[dict[str, Any]]:
        if not index:
            return []
        try:
            return list(json.loads(index).get("manifests", []))
        except (ValueError, AttributeError):
            raise PublishError(
                f"{self.address.host}/{self.address.repository}: its list of referrers is no OCI index; is a proxy "
                "before the registry?"
            ) from None

    def _ask(self, method: str, path: str, headers: Mapping[str, str] | None = None) -> requests.Response | None:
        """The answer to a request that only reads; None for what is not there. Raises PublishError."""
        return self._request(method, path, headers or {}, None, self._session, missing=True)

    def _send(
        self, method: str, path: str, headers: Mapping[str, str], body: Any, *, session: requests.Session | None = None
    ) -> requests.Response:
        answer = self._request(method, path, headers, body, session or self._session, missing=False)
        assert answer is not None
        return answer

    def _request(
        self, method: str, path: str, headers: Mapping[str, str], body: Any, session: requests.Session, *, missing: bool
    ) -> requests.Response | None:
        where = f"{self.address.host}/{self.address.repository} {path}"
        url = path if "://" in path else self.address.base + path
        try:
            answer = session.request(method, url, headers=headers, data=body, timeout=TIMEOUT_S)
        except requests.RequestException as error:
            raise registry_failure(where, error) from None
        if answer.status_code == 404 and missing:
            return None
        if answer.status_code >= 400:
            raise registry_answer(where, answer)
        return answer


def _fallback_tag(digest: str) -> str:
    return digest.replace(":", "-")
