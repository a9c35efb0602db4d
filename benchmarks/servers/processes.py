"""Start the servers that are compared, each its own process on a port of its own, and wait until they answer."""

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
# Infinity sends statistics of use unless it is told not to, and looks models up in a hub.
QUIET = {
    "DO_NOT_TRACK": "1",
    "INFINITY_ANONYMOUS_USAGE_STATS": "0",
    "HF_HUB_OFFLINE": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "TOKENIZERS_PARALLELISM": "true",
}
# torch-bf16 is nothing that Infinity does by itself: it is measured because this server runs in bf16
# too, and because it is the fastest that Infinity does here with long texts.
INFINITY_ENGINES: Mapping[str, tuple[str, ...]] = {
    "optimum": ("--engine", "optimum"),
    "torch": ("--engine", "torch"),
    "torch-bf16": ("--engine", "torch", "--dtype", "bfloat16", "--no-bettertransformer"),
}


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

    cache: where it keeps what its first start on a machine found out; beside the log when not given.
    """
    port = free_port()
    kept = (cache or log.parent / "cache").absolute()
    environ = serving_environment(model_dir, port) | {"NIM_LOG_LEVEL": level, "NIM_CACHE_PATH": str(kept)}
    with started(serving_command(), port, "/v1/health/ready", log, environ) as running:
        yield running


@contextmanager
def infinity(python: Path, models: Sequence[Path], engine: str, log: Path) -> Iterator[Running]:
    """The peer with one of its engines, serving all the models; /v1 in front of its routes."""
    port = free_port()
    command = [str(python.parent / "infinity_emb"), "v2"]
    for model in models:
        command += ["--model-id", str(model.absolute()), "--served-model-name", model.name]
    command += [*INFINITY_ENGINES[engine], "--device", "cpu", "--pooling-method", "mean", "--no-compile"]
    command += ["--no-trust-remote-code", "--no-vector-disk-cache", "--url-prefix", "/v1", "--log-level", "warning"]
    command += ["--host", HOST, "--port", str(port)]
    home = log.parent / "hf-home"
    with started(command, port, "/health", log, {**QUIET, "HF_HOME": str(home), "INFINITY_HOME": str(home)}) as running:
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
        begun = time.monotonic()
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=output, stderr=output, env={**os.environ, **environ}
        )
    running = Running(url=f"http://{HOST}:{port}", process=process, log=log)
    try:
        wait(running, ready)
        running.ready_s = time.monotonic() - begun
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
