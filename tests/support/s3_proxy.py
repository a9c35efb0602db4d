"""A proxy in front of an S3 server: counts requests, and kills, holds or damages at those that a test says."""

from __future__ import annotations

import http.client
import http.server
import ssl
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from urllib.parse import urlsplit

from tests.support.servers import _Server

HOP = frozenset({"connection", "transfer-encoding", "content-length", "keep-alive"})


@dataclass
class Proxy:
    """What passed, and what is to happen. `before` and `after` are told the number and line of each request, from 1."""

    target: str  # "127.0.0.1:8333"
    url: str = ""
    seen: list[str] = field(default_factory=list)  # "PUT /mirror/blobs/…"
    before: Callable[[int, str], None] = lambda *_: None  # the server has not heard of it
    after: Callable[[int, str], None] = lambda *_: None  # the server has done it, the client does not know
    damage: Callable[[str, bytes], bytes] = lambda _, body: body  # a request's body on its way
    loses: Callable[[str], bool] = lambda _: False  # whether the reply is lost, and the connection with it
    drops: frozenset[str] = frozenset()  # headers of requests
    cut: Callable[[str], bool] = lambda _: False  # whether half of a reply's body is sent, and the connection closed
    lock: threading.Lock = field(default_factory=threading.Lock)

    @property
    def target_name(self) -> str:
        """What a registry's address names instead of the server: "localhost:PORT"."""
        return f"localhost:{urlsplit(self.url).port}"

    @property
    def writes(self) -> list[str]:
        return [line for line in self.seen if line.startswith(("PUT", "POST", "DELETE"))]


def _handler(proxy: Proxy) -> type[http.server.BaseHTTPRequestHandler]:
    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def forward(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"] or 0))
            line = f"{self.command} {self.path}"
            with proxy.lock:
                proxy.seen.append(line)
                number = len(proxy.seen)
            proxy.before(number, line)
            sent = proxy.damage(line, body)
            server = http.client.HTTPConnection(proxy.target, timeout=60)
            server.putrequest(self.command, self.path, skip_host=True, skip_accept_encoding=True)
            for name, value in self.headers.items():  # the signature covers Host, so it goes on as it is
                if name.lower() not in proxy.drops:
                    server.putheader(name, value)
            server.endheaders(sent)
            answer = server.getresponse()
            data = answer.read()
            server.close()
            proxy.after(number, line)
            if proxy.loses(line):
                self.close_connection = True
                return
            with suppress(OSError):  # the client may be dead
                self.send_response_only(answer.status)
                for name, value in answer.getheaders():
                    if name.lower() not in HOP:
                        self.send_header(name, value)
                length = answer.headers["Content-Length"] if self.command == "HEAD" else str(len(data))
                self.send_header("Content-Length", length or "0")
                self.end_headers()
                self.close_connection = proxy.cut(line)
                self.wfile.write(data[: len(data) // 2] if self.close_connection else data)

        do_GET = do_PUT = do_POST = do_DELETE = do_HEAD = do_PATCH = forward

        def log_message(self, *_: object) -> None:
            return

    return Handler


@contextmanager
def in_front_of(url: str, context: ssl.SSLContext | None = None) -> Iterator[Proxy]:
    """A running proxy; with a context it speaks TLS, as "localhost"."""
    proxy = Proxy(target=urlsplit(url).netloc)
    server = _Server(("127.0.0.1", 0), _handler(proxy))
    if context is not None:
        server.socket = context.wrap_socket(server.socket, server_side=True)
    port = server.server_address[1]
    proxy.url = f"https://localhost:{port}" if context is not None else f"http://127.0.0.1:{port}"
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
    try:
        yield proxy
    finally:
        server.shutdown()
        server.server_close()
