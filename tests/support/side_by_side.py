"""Tiny real models as `enginery build` writes them: dist/MODEL with a manifest, an engine and a tokenizer."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest

from tests.support.profiles import GENERIC, Tiny, add_profile, write_manifest
from tests.support.tiny_models import reranker

ROW = "tiny__cpu__fp32__tp1"


def write_dist(folder: Path, files: Mapping[str, bytes]) -> Path:
    """dist/MODEL of one generic profile."""
    root = folder / "rootfs" / "opt" / "nim"
    write_manifest(root, [add_profile(root, ROW, GENERIC, files)])
    manifest = root / "etc" / "default" / "model_manifest.yaml"
    (folder / "model_manifest.yaml").write_bytes(manifest.read_bytes())
    return folder


@pytest.fixture(scope="session")
def embed_dist(tiny: Tiny, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_dist(tmp_path_factory.mktemp("dist") / "tiny", tiny.files("engine.onnx", tiny.onnx))


@pytest.fixture(scope="session")
def rerank_dist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_dist(tmp_path_factory.mktemp("dist") / "tiny-rerank", reranker().files())
