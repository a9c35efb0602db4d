"""A model's folder as `enginery build` wrote it, and the profile that a server started from it chooses here."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import msgspec

from pipelines.errors import EngineryError
from serving.choice import hardware, select
from serving.contract import manifest


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


def read_built(folder: Path) -> Built:
    """Raises EngineryError when no profile runs here."""
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
