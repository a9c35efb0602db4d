"""An HTTP server that answers anything at once with the same bytes: what a load generator costs without a server.

python -m benchmarks.servers.reply_server PORT [BODY_BYTES]
"""

from __future__ import annotations

import asyncio
import sys
from typing import Any

import uvloop


class Reply(asyncio.Protocol):
    """Takes each request that comes in one piece, or ends with its declared length, for one request."""

    def __init__(self, answer: bytes) -> None:
        self._answer, self._missing = answer, 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport: Any = transport

    def data_received(self, data: bytes) -> None:
        if self._missing:
            self._missing -= len(data)
        else:
            head, _, body = data.partition(b"\r\n\r\n")
            length = head.partition(b"content-length: ")[2].partition(b"\r\n")[0]
            self._missing = int(length or 0) - len(body)
        if self._missing <= 0:
            self._missing = 0
            self._transport.write(self._answer)


async def serve(port: int, size: int) -> None:
    body = b'{"data":[{"index":0,"embedding":"' + b"A" * size + b'"}]}'
    if size == 0:
        body = b'{"object":"list","data":[{"id":"null"}]}'
    head = f"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n".encode()
    server = await asyncio.get_running_loop().create_server(lambda: Reply(head + body), "127.0.0.1", port)
    await server.serve_forever()


if __name__ == "__main__":
    uvloop.run(serve(int(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 2048))
