"""The installed versions and the CPU that decide a step's bytes, beside its request, its inputs and its code."""

from __future__ import annotations

import importlib.metadata
import platform
from collections.abc import Mapping
from functools import cache
from pathlib import Path

from pipelines.matrix.compilers import COMPILERS

_ONNX = ("onnx", "protobuf", "numpy")
_RECIPES = ("torch", "transformers", "optimum", "optimum-onnx", "safetensors", "tokenizers", *_ONNX)
_DATASETS = ("bm25s", "ir-measures", "pillow")
# Stage, or compiler, -> the distributions whose version can change its bytes. A test holds this against the imports.
DISTRIBUTIONS: Mapping[str, tuple[str, ...]] = {
    "texts": ("python",),
    "export": (*_RECIPES, *_DATASETS, "onnxscript"),
    "quantize": (
        *_RECIPES,
        *_DATASETS,
        "nvidia-modelopt",
        "onnx-graphsurgeon",  # and the next two: of Model Optimizer
        "onnxscript",
        "onnxslim",
        "scipy",
        "onnxruntime",
        "ml_dtypes",
    ),
    "shard": (*_ONNX, "onnxruntime", "torch"),
    **{name: compiler.distributions for name, compiler in COMPILERS.items()},
    "measure": (*_ONNX, *_DATASETS, "onnxruntime", "openvino", "pytrec-eval-terrier", "scipy", "tokenizers"),
    "judge": (),
}
NOT_INSTALLED = "not installed"


def versions() -> dict[str, str]:
    """Every version that some step's keys hold."""
    return {name: version_of(name) for name in sorted({name for part in DISTRIBUTIONS.values() for name in part})}


def version_of(distribution: str) -> str:
    """As it is installed now: read anew each time, so that a daemon sees what was installed after it started."""
    if distribution == "python":
        return platform.python_version()
    try:
        metadata = importlib.metadata.distribution(distribution).read_text("METADATA") or ""
    except importlib.metadata.PackageNotFoundError:
        return NOT_INSTALLED
    # The version stands near the top; importlib.metadata.version parses the whole file, which takes 20 times as long.
    return next(line.removeprefix("Version: ") for line in metadata.splitlines() if line.startswith("Version: "))


@cache
def cpu_model() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "unknown")
