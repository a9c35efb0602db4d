"""Models served by the real server, in a container or a process, for clients that know neither."""

from __future__ import annotations

import fcntl
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest

from pipelines.cli.demo import HARDENED
from pipelines.image import build
from pipelines.image.docker import DockerUnreachable, connect
from pipelines.store.store import Store
from tests.support.models import ROOT

PYTHON = ROOT / ".venv-clients" / "bin" / "python"

MATRIX = """
schema_version: 1
models:
  tiny:
    {task: embed, source: ./tiny-bert, release: "1.2.3", max_tokens: 64, matryoshka: true, golden: {num_texts: 32},
     shapes: {min: [1, 1], opt: [8, 32], max: [64, 64]}, runtimes: [cpu]}
  tiny-rerank:
    {task: rerank, source: ./tiny-rerank, release: "1.2.3", max_tokens: 64, golden: {num_texts: 32},
     shapes: {min: [1, 1], opt: [8, 32], max: [64, 64]}, runtimes: [cpu]}
skus:
  cpu-x86-64: {cpu_arch: x86_64, precisions: [fp32], compiler: onnx}
build:
  - {models: ["*"], skus: [cpu-x86-64], precisions: [fp32]}
"""


@dataclass(frozen=True, kw_only=True)
class Served:
    """A running server."""

    url: str  # "http://127.0.0.1:12345"
    model: str
    tokenizer: Path  # a folder that transformers reads

    def post(self, route: str, **body: Any) -> Any:
        """What a bare HTTP client gets."""
        answer = httpx.post(f"{self.url}{route}", json={"model": self.model, **body}, timeout=60)
        assert answer.status_code == 200, answer.text
        return answer.json()


def make_reranker(source: Path, folder: Path) -> None:
    """A cross-encoder of the tiny model's size, with random weights and one logit."""
    import torch
    from transformers import BertConfig, BertForSequenceClassification

    shutil.copytree(source, folder, ignore=shutil.ignore_patterns("modules.json", "1_*", "config_sentence*"))
    config = BertConfig.from_pretrained(source)
    config.num_labels = 1
    torch.manual_seed(1)
    BertForSequenceClassification(config).save_pretrained(folder, safe_serialization=True)


@contextmanager
def running(built: Path, model: str, tokenizer: str) -> Iterator[Served]:
    """The model's container, as a stranger would run it; its folder served by a process where no engine answers."""
    dist = built / "dist" / model
    try:
        client = connect(timeout_s=300)
    except DockerUnreachable:
        with process(dist) as url:
            yield Served(url=url, model=model, tokenizer=built / tokenizer)
        return
    cache = Path(os.environ.get("ENGINERY_CACHE") or built / "cache")
    cache.mkdir(parents=True, exist_ok=True)
    with (cache / "tests.lock").open("w") as file:  # other tests make the same runtime
        fcntl.flock(file, fcntl.LOCK_EX)
        (made,) = build.build_images(dist, ("cpu",), store=Store(cache))
    try:
        with container(made.image_id) as url:
            yield Served(url=url, model=model, tokenizer=built / tokenizer)
    finally:
        client.remove(made.reference)


@contextmanager
def container(image_id: str) -> Iterator[str]:
    command = ("run", "--detach", *HARDENED, "--no-healthcheck", "--publish", "127.0.0.1::8000", image_id)
    name = docker(*command).stdout.strip()
    try:
        url = f"http://{docker('port', name, '8000').stdout.split()[0]}"
        wait_until_ready(url, lambda: docker("logs", name, check=False).stderr[-2000:])
        yield url
    finally:
        docker("rm", "--force", name, check=False)


@contextmanager
def process(dist: Path) -> Iterator[str]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "pipelines.cli", "serve", str(dist), "--port", str(port)]
    server = subprocess.Popen(command, env={**os.environ, "PYTHONPATH": str(ROOT)})
    try:
        wait_until_ready(f"http://127.0.0.1:{port}", lambda: f"exit code {server.poll()}")
        yield f"http://127.0.0.1:{port}"
    finally:
        server.terminate()
        try:
            server.wait(20)
        except subprocess.TimeoutExpired:
            server.kill()


def docker(*arguments: str, check: bool = True) -> subprocess.CompletedProcess[str]:
    """One command to the engine, which must end: an engine that hangs must not hang the tests."""
    return subprocess.run(["docker", *arguments], capture_output=True, text=True, check=check, timeout=120)


def wait_until_ready(url: str, told: Callable[[], str]) -> None:
    deadline = time.monotonic() + 60
    while True:
        with suppress(httpx.TransportError):
            if httpx.get(f"{url}/v1/health/ready").status_code == 200:
                return
        if time.monotonic() > deadline:
            pytest.fail(f"not ready within a minute: {told()}")
        time.sleep(0.1)


def environ(home: Path) -> dict[str, str]:
    """Nothing of this machine: no proxies, no keys, no hub."""
    return {
        "PATH": f"{PYTHON.parent}:/usr/bin:/bin",
        "HOME": str(home),
        "HF_HUB_OFFLINE": "1",
        "TRANSFORMERS_OFFLINE": "1",
        "HAYSTACK_TELEMETRY_ENABLED": "False",
        "ANONYMIZED_TELEMETRY": "False",
        "NVIDIA_API_KEY": "not-used",
        "OPENAI_API_KEY": "not-used",
    }
