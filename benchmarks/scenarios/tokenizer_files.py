"""Where a tokenizer is read from: a file, a model's folder, or a folder that `enginery build` wrote."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import msgspec

from pipelines.errors import EngineryError
from serving.contract import manifest

REMEDY = "name a tokenizer.json, a folder that holds one, or dist/MODEL as `enginery build` wrote it"


class Tokenizer(NamedTuple):
    """A tokenizer, and the most tokens that its model takes where that is known."""

    data: bytes
    max_tokens: int | None


def read(path: Path) -> Tokenizer:
    """Raises EngineryError."""
    if path.is_file():
        return Tokenizer(path.read_bytes(), None)
    if (path / "tokenizer.json").is_file():
        return Tokenizer((path / "tokenizer.json").read_bytes(), _declared(path / "config.json"))
    if not (path / "model_manifest.yaml").is_file():
        raise EngineryError(f"{path} holds no tokenizer; {REMEDY}")
    root = path / "rootfs" / "opt" / "nim"
    (profile, *_) = manifest.read(path / "model_manifest.yaml").profiles
    data, task = ((root / profile.file(name).uri).read_bytes() for name in ("tokenizer.json", "task.json"))
    return Tokenizer(data, msgspec.json.decode(task, type=_Task).max_tokens)


class _Task(msgspec.Struct):
    max_tokens: int | None = None


class _Config(msgspec.Struct):
    max_position_embeddings: int | None = None


def _declared(config: Path) -> int | None:
    if not config.is_file():
        return None
    try:
        return msgspec.json.decode(config.read_bytes(), type=_Config).max_position_embeddings
    except msgspec.DecodeError as error:
        raise EngineryError(f"{config} is not a model's configuration: {error}") from error
