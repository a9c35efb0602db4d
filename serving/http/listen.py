"""A socket and its TLS: listen on an address, and what uvicorn is told of connections."""

from __future__ import annotations

import socket
import ssl
from dataclasses import dataclass
from pathlib import Path

import uvicorn

from serving.api.app import App
from serving.errors import ServingError
from serving.http.protocol import LimitedProtocol


class ListenError(ServingError):
    """The address cannot be listened on, or not with these certificates."""

    exit_code = 27


@dataclass(frozen=True, kw_only=True)
class Tls:
    """Files in PEM."""

    key: Path
    certificates: Path  # the server's, and those between it and its authority
    client_authorities: Path | None = None  # given: clients must show a certificate that one of these signed


def bind(host: str, port: int) -> socket.socket:
    """A listening address, before anything slow happens. Raises ListenError."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    sock = socket.socket(family, socket.SOCK_STREAM)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        sock.bind((host, port))
    except OSError as error:
        sock.close()
        raise ListenError(
            f"cannot listen on {host}:{port}: {error.strerror}; choose another port with NIM_HTTP_API_PORT"
        ) from error
    return sock


def configure(app: App, drain_s: float, tls: Tls | None = None) -> uvicorn.Config:
    """How uvicorn serves the application. Raises ListenError when the certificates cannot be used."""
    config = uvicorn.Config(
        app,
        http=LimitedProtocol,
        loop="uvloop",
        ws="none",
        lifespan="off",
        log_config=None,
        access_log=False,
        proxy_headers=False,
        server_header=False,
        timeout_keep_alive=75,  # longer than the idle time of usual load balancers
        timeout_graceful_shutdown=max(1, int(min(drain_s, 2))),
        ssl_keyfile=tls.key if tls else None,
        ssl_certfile=tls.certificates if tls else None,
        ssl_ca_certs=tls.client_authorities if tls else None,
        ssl_cert_reqs=ssl.CERT_REQUIRED if tls and tls.client_authorities else ssl.CERT_NONE,
    )
    try:
        config.load()  # reads the certificates
    except OSError as error:  # ssl.SSLError is one
        assert tls is not None
        named = ", ".join(str(path) for path in (tls.certificates, tls.key, tls.client_authorities) if path)
        raise ListenError(
            f"TLS does not start with {named}: {error}; NIM_SSL_CERTS_PATH and NIM_SSL_KEY_PATH name a certificate and "
            "its key in PEM, NIM_SSL_CA_CERTS_PATH the authorities of clients"
        ) from error
    return config
