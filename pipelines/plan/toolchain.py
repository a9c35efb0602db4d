"""What decides a step's bytes beside its request and its inputs: versions, the server's code, this machine."""

from __future__ import annotations

import hashlib
import importlib.metadata
from functools import cache
from pathlib import Path

from pipelines.matrix.compilers import COMPILERS

# The distributions whose version can change a stage's bytes.
DISTRIBUTIONS = {
    "export": ("torch", "transformers", "optimum", "optimum-onnx", "onnx"),
    "quantize": ("nvidia-modelopt", "onnx", "onnxruntime", "tokenizers"),
    "shard": ("onnx", "onnxruntime", "torch"),
    **{name: compiler.distributions for name, compiler in COMPILERS.items()},
    "measure": ("onnxruntime", "openvino", "tokenizers", "onnx", "ir-measures"),
}
NOT_INSTALLED = "not installed"


def versions(part: str) -> dict[str, str]:
    return {name: version_of(name) for name in DISTRIBUTIONS[part]}


def version_of(distribution: str) -> str:
    """As it is installed now: asked anew each time, so that a daemon sees what was installed after it started."""
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return NOT_INSTALLED


@cache
def serving_code(*parts: str) -> str:
    """A digest over sources of the server: a verdict is only as good as the code that judged."""
    root = Path(__file__).parents[2] / "serving"
    digest = hashlib.sha256()
    for part in parts:
        target = root / part
        for path in sorted(target.rglob("*.py")) if target.is_dir() else [target]:
            digest.update(path.relative_to(root).as_posix().encode() + b"\0" + path.read_bytes())
    return "sha256:" + digest.hexdigest()


@cache
def cpu_model() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "unknown")
