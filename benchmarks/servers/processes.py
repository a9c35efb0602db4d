"""Start a server as a process on a port of its own, wait until it answers, and stop it."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from pipelines.errors import EngineryError

HOST = "127.0.0.1"
START_TIMEOUT_S = 240.0
STOP_TIMEOUT_S = 15.0


@dataclass(kw_only=True)
class Running:
    """A started server."""

    url: str
    process: subprocess.Popen[bytes]
    log: Path
    ready_s: float = 0.0  # from the start of its process until it answered

    @property
    def pid(self) -> int:
        return self.process.pid


def serving_command() -> list[str]:
    """What `enginery serve` becomes once it has read its arguments."""
    return [sys.executable, "-m", "serving", "serve"]


def serving_environment(model_dir: Path, port: int) -> dict[str, str]:
    """model_dir: as `enginery build` wrote it. The CPU profile is the server's own choice."""
    root = (model_dir / "rootfs" / "opt" / "nim").absolute()
    if not root.is_dir():
        raise EngineryError(f"{model_dir} holds no built model; run enginery build first")
    return {
        "ENGINERY_ROOT": str(root),
        "NIM_MANIFEST_PATH": str(root / "etc" / "default" / "model_manifest.yaml"),
        "NIM_SERVER_HOST": HOST,
        "NIM_HTTP_API_PORT": str(port),
        "NIM_CPU_ONLY": "1",
    }


@contextmanager
def enginery(model_dir: Path, log: Path, *, cache: Path | None = None, level: str = "WARNING") -> Iterator[Running]:
    """This server from its folder. By default it writes no line per request, as the peer writes none.

    cache: where it keeps what its first start on a machine measured; beside the log when not given.
    """
    port = free_port()
    cache_path = str((cache or log.parent / "cache").absolute())
    environ = serving_environment(model_dir, port) | {"NIM_LOG_LEVEL": level, "NIM_CACHE_PATH": cache_path}
    with started(serving_command(), port, "/v1/health/ready", log, environ) as running:
        yield running


@contextmanager
def module(
    name: str, arguments: Sequence[str], ready: str, log: Path, environ: Mapping[str, str] | None = None
) -> Iterator[Running]:
    """`python -m NAME` with these arguments, of which "PORT" is replaced."""
    port = free_port()
    command = [sys.executable, "-m", name, *(argument.replace("PORT", str(port)) for argument in arguments)]
    with started(command, port, ready, log, environ or {}) as running:
        yield running


@contextmanager
def started(command: Sequence[str], port: int, ready: str, log: Path, environ: Mapping[str, str]) -> Iterator[Running]:
    """Any server, once GET `ready` answers 200. Raises EngineryError with the end of its log."""
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("wb") as output:
        start = time.monotonic()
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=output, stderr=output, env={**os.environ, **environ}
        )
    running = Running(url=f"http://{HOST}:{port}", process=process, log=log)
    try:
        wait(running, ready)
        running.ready_s = time.monotonic() - start
        yield running
    finally:
        process.terminate()
        try:
            process.wait(STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait(5)


def wait(running: Running, path: str, timeout_s: float = START_TIMEOUT_S) -> None:
    """Until the server answers 200 there. Raises EngineryError with the end of its log."""
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        if running.process.poll() is not None:
            tail = running.log.read_text("utf-8", "replace")[-3000:]
            raise EngineryError(f"{running.process.args!r} ended with {running.process.returncode}:\n{tail}")
        if status(f"{running.url}{path}") == 200:
            return
        time.sleep(0.005)
    raise EngineryError(f"{running.process.args!r} did not answer {path} within {timeout_s:.0f} s; see {running.log}")


def status(url: str) -> int:
    """0: nobody answers."""
    try:
        with urllib.request.urlopen(url, timeout=2) as response:
            return int(response.status)
    except urllib.error.HTTPError as error:
        return error.code
    except (OSError, TimeoutError):
        return 0


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        return int(probe.getsockname()[1])
