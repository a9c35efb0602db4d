"""Small packaged models to publish, and `enginery` as a process of its own that publishes them."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path

from pipelines.image import package, package_file
from pipelines.image.package import Candidate
from pipelines.matrix.load import load
from pipelines.matrix.values import Row
from serving.contract.profile import Precision
from serving.tasks.base import ONLY
from tests.support.verdicts import verdict

ROOT = Path(__file__).parents[2]
MATRIX = ROOT / "sku_matrix.yaml"
VERSIONS = {"tensorrt-rtx": "1.7.1.116", "tensorrt": "11.4.0", "openvino": "2026.4.1", "onnxruntime": "1.31.1"}
ROWS = (("cpu-x86-64", "fp32"), ("l40s", "fp16"), ("l4", "fp16"), ("l40s", "fp8"))


def packaged(
    folder: Path,
    content: Mapping[str, bytes] | None = None,
    model: str = "tiny",
    release: str = "1.0.0",
    rows: Iterable[tuple[str, str]] = ROWS,
) -> Path:
    """dist/MODEL by the real packager, with engines of the given content (target-precision -> bytes)."""
    matrix = load(MATRIX)
    of = replace(next(iter(matrix.models.values())), name=model, release=release)
    sources = folder / f"sources-{model}-{release}"
    sources.mkdir(parents=True)
    for name in package.SHARED:
        (sources / name).write_text(name)
    candidates = []
    for sku, precision in rows:
        row = Row(model=of, sku=matrix.skus[sku], precision=Precision(precision), tp=1)
        target = f"{row.sku.compute_capability or row.sku.name}-{precision}"
        engine = sources / target
        engine.write_bytes((content or {}).get(target, target.encode()))
        candidates.append(Candidate(row=row, engines={ONLY: engine}, verdict=verdict(row.name, engine)))
    package_file.ensure_packaged(
        of,
        candidates,
        {name: sources / name for name in package.SHARED},
        folder=folder / "dist" / model,
        versions=VERSIONS,
        skus=matrix.skus,
        unbuilt={"tiny__h100-sxm-80gb__fp16__tp1": "no worker"},
    )
    return folder / "dist" / model


def command(*arguments: str | Path, environ: Mapping[str, str]) -> subprocess.Popen[str]:
    """`enginery …` as a process of its own."""
    return subprocess.Popen(
        [sys.executable, "-m", "pipelines.cli", *map(str, arguments)],
        env={**os.environ, "PYTHONPATH": str(ROOT), "COLUMNS": "200", **environ},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def run(*arguments: str | Path, environ: Mapping[str, str]) -> subprocess.CompletedProcess[str]:
    running = command(*arguments, environ=environ)
    said, errors = running.communicate(timeout=120)
    return subprocess.CompletedProcess(running.args, running.returncode, said, errors)
