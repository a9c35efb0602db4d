"""Show a built model serving: start its image as a stranger would run it, ask it, print what it said."""

from __future__ import annotations

import os
import subprocess
import sys
import time
import urllib.error
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape

from pipelines.cli.demo_requests import ask
from pipelines.errors import EngineryError
from pipelines.image import images, package
from pipelines.tasks.base import resolve
from pipelines.tasks.table import TASKS
from serving.contract import manifest
from serving.tasks.table import load_spec

READY_WITHIN_S = 60.0
# No network but the published port, nothing writable but /tmp, no capabilities, a user id the image has never heard of.
HARDENED = ("--read-only", "--tmpfs", "/tmp", "--cap-drop", "ALL", "--user", "12345:2000")  # noqa: S108


def run_demo(console: Console, dist: Path, model_dir: Path | None, port: int) -> int:
    folder = model_dir or only_model(dist)
    loaded = [image.reference for image in images.load(folder) if image.loaded and image.kind == "full"]
    reference = loaded[0] if loaded else None
    url = f"http://127.0.0.1:{port}"
    started = time.monotonic()
    with container(reference, port) if reference else process(folder, port) as what:
        console.print(f"\n[bold]Started[/] {escape(what)}")
        ready = wait_until_ready(url, started)
        metadata = ask(f"{url}/v1/metadata")
        console.print(f"Ready after {ready:.1f} s. Selected profile: [bold]{chosen(metadata)}[/]")
        resolve(TASKS[task_of(folder)].demo)(console, url, folder)
    console.print(f"\nThe report: {folder / 'report.html'}")
    return 0


def task_of(folder: Path) -> str:
    """What a packaged model does, as its task.json says."""
    root = folder / package.ROOT
    profile = manifest.read(root / package.MANIFEST).profiles[0]
    return load_spec((root / profile.file("task.json").uri).read_bytes()).task


def chosen(metadata: dict[str, Any]) -> str:
    return f"{metadata.get('selectedModelProfileName', '')} ({metadata['selectedModelProfileId'][:12]}…)"


def only_model(dist: Path) -> Path:
    folders = [p for p in sorted(dist.glob("*")) if (p / "model_manifest.yaml").is_file()]
    if len(folders) != 1:
        names = ", ".join(str(p) for p in folders) or "none"
        raise EngineryError(f"{dist} holds {len(folders)} built models ({names}); build first, or name one folder")
    return folders[0]


@contextmanager
def container(reference: str, port: int) -> Iterator[str]:
    command = ["docker", "run", "--detach", "--rm", *HARDENED, "--publish", f"127.0.0.1:{port}:8000", reference]
    made = subprocess.run(command, capture_output=True, text=True, check=False)
    if made.returncode != 0:
        raise EngineryError(f"{' '.join(command)} failed:\n{made.stderr}")
    name = made.stdout.strip()[:12]
    try:
        yield " ".join(command)
    except BaseException:
        logs = subprocess.run(["docker", "logs", name], capture_output=True, text=True, check=False)
        print(logs.stdout, logs.stderr, file=sys.stderr)
        raise
    finally:
        subprocess.run(["docker", "stop", "--time", "10", name], capture_output=True, check=False)


@contextmanager
def process(folder: Path, port: int) -> Iterator[str]:
    """The same server without a container, where no Docker engine answers."""
    command = [sys.executable, "-m", "pipelines.cli", "serve", str(folder), "--port", str(port)]
    server = subprocess.Popen(command, env=dict(os.environ))
    try:
        yield f"enginery serve {folder} --port {port} (no Docker engine answered, so there is no container)"
    finally:
        server.terminate()
        server.wait(15)


def wait_until_ready(url: str, started: float) -> float:
    while time.monotonic() - started < READY_WITHIN_S:
        try:
            ask(f"{url}/v1/health/ready")
            return time.monotonic() - started
        except (urllib.error.URLError, ConnectionError, TimeoutError):
            time.sleep(0.05)
    raise EngineryError(f"{url} was not ready within {READY_WITHIN_S:.0f} s")
