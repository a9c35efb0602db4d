"""A token server, and the settings by which docker-registry wants its tokens and checks each signature and access."""

from __future__ import annotations

import base64
import http.server
import json
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import padding, rsa

from tests.support import servers

SERVICE, ISSUER = "enginery-tests", "enginery-tests-issuer"


@dataclass
class Tokens:
    """What a token server was asked for, and what it does wrong."""

    key: Path  # PEM
    certificate: Path  # PEM, of the key
    granted: frozenset[str] = frozenset({"pull", "push"})
    scopes: list[str] = field(default_factory=list)  # "repository:team/tiny:pull", in order
    logins: list[str | None] = field(default_factory=list)  # Authorization
    body: bytes | None = None  # the answer instead of a token
    url: str = ""


def signed(tokens: Tokens, repository: str, actions: list[str]) -> str:
    """A JSON Web Token (RS256) with the certificate of its key."""
    der = base64.b64encode(_der(tokens.certificate)).decode()
    now = int(time.time())
    access = [{"type": "repository", "name": repository, "actions": actions}]
    claims = {"iss": ISSUER, "aud": SERVICE, "sub": "", "iat": now, "nbf": now - 10, "exp": now + 300, "access": access}
    parts = [_encoded(json.dumps(part).encode()) for part in ({"typ": "JWT", "alg": "RS256", "x5c": [der]}, claims)]
    key = serialization.load_pem_private_key(tokens.key.read_bytes(), None)
    assert isinstance(key, rsa.RSAPrivateKey)
    parts.append(_encoded(key.sign(".".join(parts).encode(), padding.PKCS1v15(), hashes.SHA256())))
    return ".".join(parts)


def _encoded(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def _der(certificate: Path) -> bytes:
    lines = certificate.read_text().splitlines()
    return base64.b64decode("".join(line for line in lines if "CERTIFICATE" not in line))


@contextmanager
def token_server(folder: Path) -> Iterator[Tokens]:
    certificate, key = servers.certificate(folder)
    tokens = Tokens(key=key, certificate=certificate)

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            (scope,) = parse_qs(urlsplit(self.path).query)["scope"]
            tokens.scopes.append(scope)
            tokens.logins.append(self.headers["Authorization"])
            _, repository, actions = scope.split(":")
            granted = [action for action in actions.split(",") if action in tokens.granted]
            body = tokens.body or json.dumps({"token": signed(tokens, repository, granted)}).encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            return

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    tokens.url = f"http://127.0.0.1:{server.server_address[1]}/token"
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
    try:
        yield tokens
    finally:
        server.shutdown()
        server.server_close()


def registry_settings(tokens: Tokens) -> Mapping[str, str]:
    """The environment by which docker-registry wants this server's tokens."""
    return {
        "REGISTRY_AUTH": "token",
        "REGISTRY_AUTH_TOKEN_REALM": tokens.url,
        "REGISTRY_AUTH_TOKEN_SERVICE": SERVICE,
        "REGISTRY_AUTH_TOKEN_ISSUER": ISSUER,
        "REGISTRY_AUTH_TOKEN_ROOTCERTBUNDLE": str(tokens.certificate),
    }
