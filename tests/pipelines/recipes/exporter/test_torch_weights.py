"""Weights kept out of PyTorch's export and put back: the bytes of a small model; names that are lost."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pipelines.errors import ExportError
from pipelines.onnx_graph import external_data
from pipelines.recipes import clip_towers, transformer
from pipelines.recipes.exporter import torch_weights
from pipelines.store.files import file_digest
from tests.support.clips import save_clip
from tests.support.families import write_family

TEXTS = [f"the {noun} of {noun}" for noun in ("file", "string", "object", "return")]


@pytest.fixture(autouse=True)
def small_is_external(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(external_data, "MIN_EXTERNAL_BYTES", 1024)


def exported(make: Callable[[Path], Any], folder: Path) -> tuple[Any, Path]:
    folder.mkdir()
    return make(folder), folder


@pytest.mark.parametrize("name", ["llama-bidirec", pytest.param("xlm-roberta", marks=pytest.mark.slow)])
def test_a_large_body_gives_the_bytes_that_a_small_one_gives(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    model = write_family(name, tmp_path / "model", TEXTS)
    whole, _ = exported(lambda scratch: transformer.to_onnx(model, scratch), tmp_path / "small")
    assert not external_data.is_externalized(whole)
    monkeypatch.setattr(external_data, "LARGE_BYTES", 50_000)
    externalized, folder = exported(lambda scratch: transformer.to_onnx(model, scratch), tmp_path / "large")
    assert (folder / torch_weights.DATA).stat().st_size > 50_000
    assert externalized.ByteSize() < whole.ByteSize() / 2
    external_data.write(externalized, tmp_path / "again.onnx", folder, external=False)
    assert (tmp_path / "again.onnx").read_bytes() == whole.SerializeToString(deterministic=True)


def test_two_large_towers_keep_their_weights_apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_clip(tmp_path / "model", seed=0)
    whole, _ = exported(lambda scratch: clip_towers.to_onnx(tmp_path / "model", scratch), tmp_path / "small")
    monkeypatch.setattr(external_data, "LARGE_BYTES", 50_000)
    externalized, folder = exported(
        lambda scratch: clip_towers.to_onnx(tmp_path / "model", scratch), tmp_path / "large"
    )
    for tower, model in externalized.items():
        assert external_data.is_externalized(model)
        external_data.write(model, tmp_path / f"{tower}.onnx", folder, external=False)
        assert (tmp_path / f"{tower}.onnx").read_bytes() == whole[tower].SerializeToString(deterministic=True)
    assert file_digest(tmp_path / "text.onnx") != file_digest(tmp_path / "image.onnx")


def test_weights_that_the_exporter_renamed_are_an_error(tmp_path: Path) -> None:
    from onnx import TensorProto, helper

    spilled = torch_weights.SpilledWeights(
        folder=tmp_path, order=["weight"], tensors={"weight": TensorProto(name="weight")}
    )
    graph = helper.make_graph([], "renamed", [helper.make_tensor_value_info("weight.1", TensorProto.FLOAT, [1])], [])
    with pytest.raises(ExportError, match=r"renamed weights on the way \(weight\)"):
        spilled.restore(helper.make_model(graph))
