"""Log in to a registry when it asks: docker's logins, a bearer token, or a token from the registry's token server.

Protocol: distribution.github.io/distribution/spec/auth/token.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import partial
from io import IOBase
from typing import Any
from urllib.parse import urlsplit

import requests
from requests.adapters import HTTPAdapter
from requests.auth import AuthBase
from urllib3 import Retry

from pipelines.errors import PublishError
from pipelines.remote.address import Address
from pipelines.remote.remedies import MAY_PASS, registry_answer, registry_failure
from serving.cache.sources.base import SourceError
from serving.cache.sources.oci import docker_logins

TIMEOUT_S = (10, 120)
# A request is sent up to four times. A wrong certificate ("other") is not tried again. The last answer comes through.
RETRY = Retry(
    total=3,
    other=0,
    status_forcelist=MAY_PASS,
    allowed_methods=None,
    backoff_factor=0.5,
    retry_after_max=60,
    raise_on_status=False,
)
_PARAMETER = re.compile(r'(\w+)="([^"]*)"')


def retrying() -> requests.Session:
    """A session that sends a request again while its failure may pass."""
    session = requests.Session()
    session.mount("https://", HTTPAdapter(max_retries=RETRY))
    session.mount("http://", HTTPAdapter(max_retries=RETRY))
    return session


class Login(AuthBase):
    """Answers a registry's 401 with what it asks for, and remembers that per kind of access: reading or writing.

    Nothing is sent before it is asked for, and nothing to another host, to which an upload or a download may lead.
    """

    def __init__(self, address: Address, *, token: str | None = None) -> None:
        self._address = address
        self._token = token  # ENGINERY_REPOSITORY_TOKEN: a bearer token, got elsewhere
        self._session = retrying()
        self._headers: dict[str, str] = {}  # actions -> Authorization
        try:
            self._login = docker_logins().get(address.host)
        except SourceError as error:
            raise PublishError(str(error)) from None

    def __call__(self, request: requests.PreparedRequest) -> requests.PreparedRequest:
        if urlsplit(str(request.url)).netloc != self._address.host:
            return request
        if (header := self._headers.get(_actions(request))) is not None:
            request.headers["Authorization"] = header
        start = request.body.tell() if isinstance(request.body, IOBase) else None
        request.register_hook("response", partial(self._answer, start))
        return request

    def _answer(self, start: int | None, response: requests.Response, **how: Any) -> requests.Response:
        """Send the request again with a login, once; without one the 401 stands."""
        request = response.request
        if response.status_code != 401 or urlsplit(str(request.url)).netloc != self._address.host:
            return response
        header = self._header(response.headers.get("WWW-Authenticate", ""), _actions(request))
        if header in (None, request.headers.get("Authorization")):
            return response
        self._headers[_actions(request)] = request.headers["Authorization"] = str(header)
        _ = response.content  # read to its end, so that the connection can be used again
        response.close()
        if start is not None:
            request.body.seek(start)  # type: ignore[union-attr]
        return response.connection.send(request, **how)

    def _header(self, challenge: str, actions: str) -> str | None:
        """What a registry's challenge asks for; None where there is no login. Raises PublishError."""
        kind, _, rest = challenge.partition(" ")
        asked = dict(_PARAMETER.findall(rest))
        if self._token is not None:
            return f"Bearer {self._token}"
        if kind.lower() == "basic" and self._login:
            return f"Basic {self._login}"
        if kind.lower() == "bearer" and "realm" in asked:
            return f"Bearer {self._ask_token(asked, actions)}"
        return None

    def _ask_token(self, asked: Mapping[str, str], actions: str) -> str:
        realm = asked["realm"]
        if urlsplit(realm).scheme != "https" and not self._address.plain:
            raise PublishError(f"{self._address.host} sends to {realm} for a login, which is not https://")
        query = {"scope": f"repository:{self._address.repository}:{actions}"}
        query |= {"service": asked["service"]} if "service" in asked else {}
        headers = {"Authorization": f"Basic {self._login}"} if self._login else {}
        try:
            answer = self._session.get(realm, params=query, headers=headers, timeout=TIMEOUT_S)
            if answer.status_code >= 400:
                raise registry_answer(realm, answer)
            grant = answer.json()
            return str(grant.get("token") or grant["access_token"])
        except (ValueError, KeyError, AttributeError):
            raise PublishError(
                f"{realm} gives no token that can be read; is it the token server of {self._address.host}?"
            ) from None
        except requests.RequestException as error:
            raise registry_failure(realm, error) from None


def _actions(request: requests.PreparedRequest) -> str:
    """What a request does, in a token's words. Some registries grant all that is asked for, or nothing."""
    return "pull" if request.method in ("GET", "HEAD") else "pull,push"
