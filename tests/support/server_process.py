"""`python -m serving` as a process of its own, over a manifest root, and the wait for what it answers."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx


@contextmanager
def process(root: Path, **environ: str) -> Iterator[tuple[subprocess.Popen[str], str]]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    named = {
        "ENGINERY_ROOT": str(root),
        "NIM_CACHE_PATH": str(root / "cache"),
        "NIM_HTTP_API_PORT": str(port),
        "NIM_CPU_ONLY": "1",
    }
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("NIM_", "ENGINERY_"))}
    child = subprocess.Popen(
        [sys.executable, "-m", "serving"],
        env=kept | named | environ,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        cwd=Path(__file__).parents[2],
    )
    try:
        yield child, f"http://127.0.0.1:{port}"
    finally:
        child.kill()
        child.communicate()


def wait_for(url: str, status: int, child: subprocess.Popen[str], timeout_s: float = 60) -> httpx.Response:
    end = time.monotonic() + timeout_s
    while time.monotonic() < end and child.poll() is None:
        try:
            response = httpx.get(url, timeout=5)
            if response.status_code == status:
                return response
        except httpx.TransportError:
            pass
        time.sleep(0.02)
    child.kill()
    raise AssertionError(f"{url} never gave {status}:\n{child.communicate()[0]}")
