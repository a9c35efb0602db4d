"""The sources that decide a stage's bytes, by digest. They are part of its keys: other code builds anew."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path

ROOT = Path(__file__).parents[2]
# Stage -> packages and modules: its own, and those whose functions it calls. A test holds this against the imports.
CODE: Mapping[str, tuple[str, ...]] = {
    "texts": ("pipelines/datasets/docstrings.py",),
    "export": ("pipelines/export", "pipelines/recipes", "pipelines/onnx_graph", "pipelines/datasets", "serving/tasks"),
    "quantize": (
        "pipelines/quantize",
        "pipelines/recipes",
        "pipelines/onnx_graph",
        "pipelines/datasets",
        "serving/tasks",
    ),
    "shard": ("pipelines/shard", "pipelines/onnx_graph"),
    "compile": (
        "pipelines/compile",
        "pipelines/onnx_graph",
        "serving/backends/openvino.py",
        "serving/backends/tensorrt.py",
    ),
    "measure": (
        "pipelines/measure",
        "pipelines/onnx_graph",
        "pipelines/datasets",
        "serving/tasks",
        "serving/backends",
    ),
    "judge": ("pipelines/gate",),
}


def digests() -> dict[str, str]:
    """The digest of every package and module that some stage's keys hold, as they are on disk now."""
    return {part: digest(part) for part in sorted({part for parts in CODE.values() for part in parts})}


def digest(part: str, root: Path = ROOT) -> str:
    """The digest of a package's sources, or of a module ("serving/backends/openvino.py").

    Files that look as they did before are not read again. A daemon sees an upgrade: its stages run the new code.
    """
    target = root / part
    files = sorted(target.rglob("*.py")) if target.is_dir() else [target]
    stats = [path.stat() for path in files]
    return _digest(
        root,
        tuple(path.relative_to(root).as_posix() for path in files),
        tuple((stat.st_size, stat.st_mtime_ns, stat.st_ino) for stat in stats),
    )


@lru_cache(maxsize=64)
def _digest(root: Path, names: tuple[str, ...], looks: tuple[tuple[int, int, int], ...]) -> str:
    """Of files, by name. Their sizes, times and inodes only tell whether they were read before."""
    del looks
    content = hashlib.sha256()
    for name in names:
        content.update(name.encode() + b"\0" + (root / name).read_bytes())
    return "sha256:" + content.hexdigest()
