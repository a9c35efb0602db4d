"""Infinity, the peer: how it is started, with which of its engines, in the environment of its own."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import msgspec

from benchmarks.servers import processes
from benchmarks.servers.processes import HOST, Running
from pipelines.errors import EngineryError

MAKE = "make bench makes it (requirements-peer.txt)"
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
ENGINES: Mapping[str, tuple[str, ...]] = {
    "optimum": ("--engine", "optimum"),
    "torch": ("--engine", "torch"),
    "torch-bf16": ("--engine", "torch", "--dtype", "bfloat16", "--no-bettertransformer"),
}


@contextmanager
def serve(python: Path, models: Sequence[Path], engine: str, log: Path) -> Iterator[Running]:
    """The peer with one of its engines, serving all the models; /v1 in front of its routes."""
    port = processes.free_port()
    command = [str(python.parent / "infinity_emb"), "v2"]
    for model in models:
        command += ["--model-id", str(model.absolute()), "--served-model-name", model.name]
    command += [*ENGINES[engine], "--device", "cpu", "--pooling-method", "mean", "--no-compile"]
    command += ["--no-trust-remote-code", "--no-vector-disk-cache", "--url-prefix", "/v1", "--log-level", "warning"]
    command += ["--host", HOST, "--port", str(port)]
    home = str(log.parent / "hf-home")
    environment = {**QUIET, "HF_HOME": home, "INFINITY_HOME": home}
    with processes.started(command, port, "/health", log, environment) as running:
        yield running


def versions(python: Path) -> dict[str, str]:
    """Of the peer's own environment. Raises EngineryError when it is not there."""
    if not python.is_file():
        raise EngineryError(f"{python} is not there: the peer has no environment; {MAKE}, or say --no-peer")
    script = (
        "import importlib.metadata as m, json;"
        "names = ('infinity-emb', 'optimum', 'onnxruntime', 'torch', 'transformers', 'sentence-transformers');"
        "print(json.dumps({n: m.version(n) for n in names}))"
    )
    answer = subprocess.run([str(python), "-c", script], capture_output=True, text=True, timeout=60, check=False)
    if answer.returncode:
        raise EngineryError(f"the peer's environment {python} is broken:\n{answer.stderr[-2000:]}\n{MAKE}")
    return {str(name): str(version) for name, version in msgspec.json.decode(answer.stdout).items()}
