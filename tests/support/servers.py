"""Real servers for the tests of sources: HTTP with ranges and faults, TLS, S3 (moto), a registry (docker-registry)."""

from __future__ import annotations

import hashlib
import http.client
import http.server
import json
import os
import re
import shutil
import socket
import socketserver
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

import pytest

TITLE = "org.opencontainers.image.title"
KEYS = {"AWS_ACCESS_KEY_ID": "testing", "AWS_SECRET_ACCESS_KEY": "testing", "AWS_DEFAULT_REGION": "us-east-1"}


@dataclass
class Web:
    """An HTTP server that gives ranges, and does what a test tells it to do wrong."""

    files: dict[str, bytes]  # path -> content
    url: str = ""
    asked: list[tuple[str, str | None]] = field(default_factory=list)  # path, Range
    headers: list[Mapping[str, str]] = field(default_factory=list)
    answers: list[int] = field(default_factory=list)  # statuses for the next requests; 200: as it should be
    break_after: list[int] = field(default_factory=list)  # bytes of the body after which the next answers' lines break
    redirects: dict[str, str] = field(default_factory=dict)
    ranges: bool = True
    token: str | None = None
    challenge: str = ""  # WWW-Authenticate, where the token is not given
    slow_s: float = 0.0  # a pause after every 64 KiB


class Handler(http.server.BaseHTTPRequestHandler):
    web: Web
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self.web.asked.append((self.path, self.headers["Range"]))
        self.web.headers.append(dict(self.headers.items()))
        status = self.web.answers.pop(0) if self.web.answers else 200
        data = self.web.files.get(self.path)
        if self.path in self.web.redirects:
            self.answer(302, {"Location": self.web.redirects[self.path]}, b"")
        elif self.web.token is not None and self.headers["Authorization"] != f"Bearer {self.web.token}":
            self.answer(401, {"WWW-Authenticate": self.web.challenge} if self.web.challenge else {}, b"no")
        elif status != 200 or data is None:
            self.answer(404 if data is None else status, {}, b"no")
        else:
            self.send(data)

    def send(self, data: bytes) -> None:
        tag = f'"{hashlib.md5(data).hexdigest()}"'
        wanted = re.fullmatch(r"bytes=(\d+)-", self.headers["Range"] or "") if self.web.ranges else None
        if wanted and self.headers["If-Range"] not in (None, tag):
            wanted = None
        if wanted and int(wanted[1]) >= len(data):
            return self.answer(416, {"Content-Range": f"bytes */{len(data)}"}, b"")
        if wanted:
            start = int(wanted[1])
            place = {"Content-Range": f"bytes {start}-{len(data) - 1}/{len(data)}"}
            return self.answer(206, {"ETag": tag, **place}, data[start:])
        return self.answer(200, {"ETag": tag}, data)

    def answer(self, status: int, headers: Mapping[str, str], body: bytes) -> None:
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(body))}.items():
            self.send_header(name, value)
        self.end_headers()
        end = self.web.break_after.pop(0) if self.web.break_after and status in (200, 206) else len(body)
        for start in range(0, min(end, len(body)), 65536):
            self.wfile.write(body[start : min(start + 65536, end)])
            time.sleep(self.web.slow_s)
        if end < len(body):
            self.wfile.flush()
            self.connection.shutdown(socket.SHUT_RDWR)
            self.close_connection = True

    def log_message(self, *_: object) -> None:
        return


class _Server(socketserver.ThreadingMixIn, http.server.HTTPServer):
    daemon_threads = True

    def handle_error(self, *_: object) -> None:  # clients that were killed are what the tests are about
        return


@contextmanager
def serve(files: Mapping[str, bytes], context: ssl.SSLContext | None = None) -> Iterator[Web]:
    web = Web(dict(files))
    server = _Server(("127.0.0.1", 0), type("Handler", (Handler,), {"web": web}))
    if context is not None:
        server.socket = context.wrap_socket(server.socket, server_side=True)
    web.url = f"{'https' if context else 'http'}://localhost:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    try:
        yield web
    finally:
        server.shutdown()
        server.server_close()


def certificate(folder: Path) -> tuple[Path, Path]:
    """(certificate, key) of localhost, signed by itself."""
    if shutil.which("openssl") is None:
        pytest.skip("openssl is not installed; apt-get install openssl")
    made = folder / "certificate.pem", folder / "key.pem"
    subprocess.run(
        [
            *("openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=localhost"),
            *("-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1", "-out", made[0], "-keyout", made[1]),
        ],
        check=True,
        capture_output=True,
        timeout=60,
    )
    return made


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def process(command: list[str], port: int, log: Path, environ: Mapping[str, str]) -> Iterator[None]:
    """A server that is its own process, once it listens."""
    with log.open("wb") as output:
        running = subprocess.Popen(command, stdout=output, stderr=output, env={**os.environ, **environ})
    try:
        deadline = time.monotonic() + 60
        while True:
            with suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
                break
            if running.poll() is not None or time.monotonic() > deadline:
                pytest.fail(f"{command[0]} does not listen: {log.read_text()[-2000:]}")
            time.sleep(0.05)
        yield
    finally:
        running.kill()
        running.wait(10)


@contextmanager
def s3(folder: Path, objects: Mapping[str, bytes], bucket: str = "mirror") -> Iterator[str]:
    """moto's S3 server with objects in a bucket: its URL."""
    import boto3

    port = free_port()
    command = [str(Path(sys.executable).with_name("moto_server")), "-H", "127.0.0.1", "-p", str(port)]
    with process(command, port, folder / "moto.log", {}):
        url = f"http://127.0.0.1:{port}"
        client = boto3.client(
            "s3",
            endpoint_url=url,
            region_name="us-east-1",
            aws_access_key_id="testing",
            aws_secret_access_key="testing",
        )
        client.create_bucket(Bucket=bucket)
        for key, data in objects.items():
            client.put_object(Bucket=bucket, Key=key, Body=data)
        yield url


@contextmanager
def registry(folder: Path, environ: Mapping[str, str] | None = None) -> Iterator[str]:
    """Debian's docker-registry, empty: its "localhost:PORT"."""
    if (binary := shutil.which("docker-registry")) is None:
        pytest.skip("docker-registry is not installed; apt-get install docker-registry")
    port = free_port()
    settings = {
        "version": 0.1,
        "log": {"level": "warn", "accesslog": {"disabled": True}},
        "storage": {"filesystem": {"rootdirectory": str(folder / "registry")}, "delete": {"enabled": False}},
        "http": {"addr": f"127.0.0.1:{port}"},
    }
    (folder / "registry.yml").write_text(json.dumps(settings))
    more = {"OTEL_TRACES_EXPORTER": "none", **(environ or {})}
    with process([binary, "serve", str(folder / "registry.yml")], port, folder / "registry.log", more):
        yield f"localhost:{port}"


def push_layout(layout: Path, host: str, repository: str) -> str:
    """Push the one manifest of an OCI layout as `skopeo copy` does; its digest."""
    (listed,) = json.loads((layout / "index.json").read_text())["manifests"]
    tag = listed["annotations"]["org.opencontainers.image.ref.name"]
    content = (layout / "blobs" / listed["digest"].replace(":", "/")).read_bytes()
    described = json.loads(content)
    for blob in [described["config"], *described["layers"]]:
        push_blob(host, repository, (layout / "blobs" / blob["digest"].replace(":", "/")).read_bytes())
    push_manifest(host, repository, tag, content)
    return str(listed["digest"])


def push_files(files: Mapping[str, bytes], host: str, repository: str, tag: str) -> str:
    """Push files as `oras push` does: a layer each, its path as its title; the manifest's digest."""
    layers = [
        {
            "mediaType": "application/octet-stream",
            "digest": push_blob(host, repository, data),
            "size": len(data),
            "annotations": {TITLE: title},
        }
        for title, data in files.items()
    ]
    manifest = {
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "config": {
            "mediaType": "application/vnd.oci.empty.v1+json",
            "digest": push_blob(host, repository, b"{}"),
            "size": 2,
        },
        "layers": layers,
    }
    return push_manifest(host, repository, tag, json.dumps(manifest).encode())


def push_blob(host: str, repository: str, data: bytes) -> str:
    digest = f"sha256:{hashlib.sha256(data).hexdigest()}"
    connection = http.client.HTTPConnection(host, timeout=60)
    connection.request("POST", f"/v2/{repository}/blobs/uploads/")
    answer = connection.getresponse()
    answer.read()
    parts = urlsplit(answer.headers["Location"])
    target = f"{parts.path}?{parts.query}&digest={digest}"
    connection.request("PUT", target, body=data, headers={"Content-Type": "application/octet-stream"})
    answer = connection.getresponse()
    assert answer.status == 201, answer.read()
    answer.read()
    connection.close()
    return digest


def push_manifest(host: str, repository: str, tag: str, content: bytes) -> str:
    connection = http.client.HTTPConnection(host, timeout=60)
    kind = json.loads(content)["mediaType"]
    connection.request("PUT", f"/v2/{repository}/manifests/{tag}", body=content, headers={"Content-Type": kind})
    answer = connection.getresponse()
    assert answer.status == 201, answer.read()
    connection.close()
    return f"sha256:{hashlib.sha256(content).hexdigest()}"
