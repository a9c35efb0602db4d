"""What a side-by-side run needs, made when it is missing: the models, our builds of them, and a look at the peer."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import msgspec

from benchmarks.peers import models
from pipelines.errors import EngineryError
from serving.choice import hardware, select
from serving.contract import manifest

MAKE_PEER = "make bench makes it (requirements-peer.txt)"


@dataclass(frozen=True, kw_only=True)
class Built:
    """One model, built for this machine."""

    name: str
    folder: Path  # dist/MODEL
    profile: str  # the row that the server chooses here
    backend: str
    precision: str
    max_tokens: int
    max_batch: int


class _Shapes(msgspec.Struct):
    max: tuple[int, int]


class _Task(msgspec.Struct):
    max_tokens: int
    shapes: _Shapes


def build(work: Path, store: Path) -> tuple[Built, Built]:
    """The embedding model and the reranker of benchmarks/peers/models.py.

    Raises EngineryError when one cannot be built.
    """
    models.make(work / "models")
    dist = work / "dist"
    _enginery("build", "--matrix", work / "models" / "matrix.yaml", "--store", store, "--dist", dist)
    return chosen(dist / models.EMBED), chosen(dist / models.RERANK)


def chosen(folder: Path) -> Built:
    """What a server started from this folder chooses on this machine."""
    root = folder / "rootfs" / "opt" / "nim"
    profiles = manifest.read(root / "etc" / "default" / "model_manifest.yaml").profiles
    ranked = select.rank(select.decide(profiles, hardware.detect(cpu_only=True)))
    if not ranked:
        raise EngineryError(f"{folder} holds no profile that runs on this machine")
    profile = ranked[0]
    task = msgspec.json.decode((root / profile.file("task.json").uri).read_bytes(), type=_Task)
    return Built(
        name=folder.name,
        folder=folder,
        profile=profile.name,
        backend=profile.backend,
        precision=str(profile.precision),
        max_tokens=task.max_tokens,
        max_batch=task.shapes.max[0],
    )


def peer_versions(python: Path) -> dict[str, str]:
    """Of the peer's own environment. Raises EngineryError when it is not there."""
    if not python.is_file():
        raise EngineryError(f"{python} is not there: the peer has no environment; {MAKE_PEER}, or say --no-peer")
    script = (
        "import importlib.metadata as m, json;"
        "names = ('infinity-emb', 'optimum', 'onnxruntime', 'torch', 'transformers', 'sentence-transformers');"
        "print(json.dumps({n: m.version(n) for n in names}))"
    )
    said = subprocess.run([str(python), "-c", script], capture_output=True, text=True, timeout=60, check=False)
    if said.returncode:
        raise EngineryError(f"the peer's environment {python} is broken:\n{said.stderr[-2000:]}\n{MAKE_PEER}")
    return {str(name): str(version) for name, version in msgspec.json.decode(said.stdout).items()}


def _enginery(*arguments: str | Path) -> None:
    command = [sys.executable, "-m", "pipelines.cli", *map(str, arguments), "--no-image"]
    said = subprocess.run(command, capture_output=True, text=True, timeout=1200, check=False)
    if said.returncode:
        raise EngineryError(
            f"{' '.join(command[2:])} ended with {said.returncode}:\n{said.stdout[-3000:]}{said.stderr}"
        )
