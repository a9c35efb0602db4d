"""Read files of an artifact in an OCI registry: its manifest names each file and the blob that holds it.

An address is oci://HOST/REPOSITORY:TAG/FILE or oci://HOST/REPOSITORY@sha256:…/FILE; FILE is the title that the layer
carries (org.opencontainers.image.title), as `oras push` and the factory write it. oci:// is TLS except for this
machine's own registry; oci+http:// says that a registry speaks plain HTTP.
Protocol: github.com/opencontainers/distribution-spec; tokens: distribution.github.io/distribution/spec/auth/token.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import json
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlencode, urlsplit

from serving.cache.sources.base import Location, Opened, SourceError, Transient
from serving.cache.sources.http import LOCAL_HOSTS, Http, StatusError, open_url

TITLE = "org.opencontainers.image.title"
MANIFEST_TYPES = ("application/vnd.oci.image.manifest.v1+json", "application/vnd.docker.distribution.manifest.v2+json")
MAX_MANIFEST_BYTES = 4 << 20
_ADDRESS = re.compile(
    r"oci(?P<plain>\+http)?://(?P<host>[A-Za-z0-9.-]+(?::\d+)?|\[[0-9a-f:]+\](?::\d+)?)/"
    r"(?P<repository>[a-z0-9]+(?:[._/-]+[a-z0-9]+)*)"
    r"(?::(?P<tag>\w[\w.-]{0,127})|@(?P<digest>sha256:[0-9a-f]{64}))"
    r"/(?P<title>.+)"
)
_PARAMETER = re.compile(r'(\w+)="([^"]*)"')
_DIGEST = re.compile(r"sha256:[0-9a-f]{64}")


@dataclass(frozen=True, kw_only=True)
class _Address:
    base: str  # "https://host:5000/v2/team/model"
    host: str
    repository: str
    reference: str  # a tag or a digest
    title: str
    plain: bool


def docker_logins(environ: Mapping[str, str] | None = None) -> dict[str, str]:
    """host -> base64("user:password"), from docker's config.json: a Kubernetes pull secret is one. Empty without it."""
    environ = os.environ if environ is None else environ
    folder = environ.get("DOCKER_CONFIG") or (f"{environ['HOME']}/.docker" if environ.get("HOME") else "")
    try:
        logins = json.loads(Path(folder, "config.json").read_text("utf-8"))["auths"]
        auths = {}
        for host, login in logins.items():
            plain = f"{login.get('username', '')}:{login.get('password', '')}"
            if auth := login.get("auth") or (base64.b64encode(plain.encode()).decode() if plain != ":" else ""):
                base64.b64decode(auth, validate=True)
                auths[urlsplit(host).netloc or host] = auth
        return auths
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, KeyError, AttributeError, binascii.Error) as error:
        raise SourceError(f"{folder}/config.json cannot be used for a login: {error}") from None


class OciSource:
    """One artifact's files; its manifest is asked for once."""

    def __init__(self, http: Http, *, logins: Mapping[str, str], token: str | None = None) -> None:
        self._http = http
        self._logins = logins
        self._token = token  # ENGINERY_REPOSITORY_TOKEN: a registry's bearer token, got elsewhere
        self._authorizations: dict[tuple[str, str], str] = {}  # (host, repository) -> header
        self._layers: dict[tuple[str, str], Mapping[str, str]] = {}  # (repository's URL, reference) -> title -> digest

    def open(self, location: Location, offset: int, version: str) -> Opened:
        address = _parse(location.uri)
        key = address.base, address.reference
        if key not in self._layers:
            self._layers[key] = self._read_manifest(address)
        digest = self._layers[key].get(address.title)
        if digest is None:
            listed = len(self._layers[key])
            raise SourceError(f"the artifact's manifest lists {listed} files, none with the title {address.title!r}")
        url = f"{address.base}/blobs/{digest}"
        try:
            return open_url(self._http, url, offset, version, self._authorizations.get(_scope(address)))
        except StatusError as error:
            if error.status != 401:
                raise
            return open_url(self._http, url, offset, version, self._log_in(address, error))  # the token is over

    def _read_manifest(self, address: _Address) -> Mapping[str, str]:
        url, headers = f"{address.base}/manifests/{address.reference}", {"Accept": ", ".join(MANIFEST_TYPES)}
        try:
            answer = self._http.get(url, headers, self._authorizations.get(_scope(address)))
        except StatusError as error:
            if error.status != 401:
                raise
            answer = self._http.get(url, headers, self._log_in(address, error))
        with answer:
            try:
                data = answer.read(MAX_MANIFEST_BYTES + 1)
            except OSError as error:
                raise Transient(f"the connection failed: {error}") from None
        if len(data) > MAX_MANIFEST_BYTES:
            raise SourceError(f"the artifact's manifest is larger than {MAX_MANIFEST_BYTES} bytes")
        digest = f"sha256:{hashlib.sha256(data).hexdigest()}"
        if address.reference.startswith("sha256:") and digest != address.reference:
            raise SourceError(f"the artifact's manifest hashes to {digest}, not to the digest that it was asked for by")
        return _titles(data)

    def _log_in(self, address: _Address, refused: StatusError) -> str:
        """The header that a registry asks for by WWW-Authenticate; raises SourceError where there is no login."""
        kind, _, rest = _header(refused.headers, "WWW-Authenticate").partition(" ")
        challenge, login = dict(_PARAMETER.findall(rest)), self._logins.get(address.host)
        if self._token is not None and _scope(address) not in self._authorizations:
            header = f"Bearer {self._token}"
        elif kind.lower() == "basic" and login:
            header = f"Basic {login}"
        elif kind.lower() == "bearer" and "realm" in challenge:
            header = f"Bearer {self._ask_token(address, challenge, login)}"
        else:
            raise refused
        if header == self._authorizations.get(_scope(address)):
            raise refused
        self._authorizations[_scope(address)] = header
        return header

    def _ask_token(self, address: _Address, challenge: Mapping[str, str], login: str | None) -> str:
        realm = challenge["realm"]
        if urlsplit(realm).scheme != "https" and not address.plain:
            raise SourceError(f"the registry sends to {realm} for a login, which is not https://")
        scope = challenge.get("scope") or f"repository:{address.repository}:pull"
        service = {"service": challenge["service"]} if "service" in challenge else {}
        query = urlencode(service | {"scope": scope})
        with self._http.get(
            f"{realm}{'&' if '?' in realm else '?'}{query}", {}, f"Basic {login}" if login else None
        ) as answer:
            try:
                body = json.loads(answer.read(1 << 20))
                return str(body.get("token") or body["access_token"])
            except (OSError, ValueError, KeyError, AttributeError):
                raise SourceError(f"{realm} gives no token that can be read") from None


def _parse(uri: str) -> _Address:
    match = _ADDRESS.fullmatch(unquote(uri))
    if match is None:
        raise SourceError("is not oci://HOST/REPOSITORY:TAG/FILE or oci://HOST/REPOSITORY@sha256:…/FILE")
    plain = bool(match["plain"]) or urlsplit(f"//{match['host']}").hostname in LOCAL_HOSTS
    return _Address(
        base=f"{'http' if plain else 'https'}://{match['host']}/v2/{match['repository']}",
        host=match["host"],
        repository=match["repository"],
        reference=match["tag"] or match["digest"],
        title=match["title"],
        plain=plain,
    )


def _header(headers: Mapping[str, str], name: str) -> str:
    return next((value for key, value in headers.items() if key.lower() == name.lower()), "")


def _scope(address: _Address) -> tuple[str, str]:
    return address.host, address.repository


def _titles(data: bytes) -> Mapping[str, str]:
    """title -> blob digest, of an artifact's manifest; raises SourceError."""
    try:
        manifest: Any = json.loads(data)
        layers = [(layer.get("annotations", {}).get(TITLE), layer["digest"]) for layer in manifest["layers"]]
    except (ValueError, KeyError, TypeError, AttributeError):
        raise SourceError("the registry's answer is no manifest of an OCI artifact") from None
    if wrong := [digest for _, digest in layers if not (isinstance(digest, str) and _DIGEST.fullmatch(digest))]:
        raise SourceError(f"the artifact's manifest names blobs by {wrong[0]!r}, which is no sha256 digest")
    return {title: digest for title, digest in layers if isinstance(title, str)}
