"""Where a model comes from: folders, packages, the hub; what is missing or unsafe is refused with its reason."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import pytest

from pipelines.errors import ExportError
from pipelines.export import sources


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    model = tmp_path / "model"
    (model / "1_Pooling").mkdir(parents=True)
    (model / "config.json").write_text("{}")
    (model / "model.safetensors").write_bytes(b"weights")
    (model / "1_Pooling" / "config.json").write_text("{}")
    return model


def test_a_folder_is_relative_to_the_file_that_names_it(folder: Path) -> None:
    assert sources.resolve("model", folder.parent) == folder


def test_a_missing_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="there is no folder"):
        sources.resolve("nowhere", tmp_path)


def test_a_package_is_found_without_being_imported(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = folder.parent / "carrier"
    package.mkdir()
    (package / "__init__.py").write_text("raise SystemExit('imported')")
    shutil.move(folder, package / "model")
    monkeypatch.syspath_prepend(str(folder.parent))
    assert sources.resolve("package://carrier/model", Path("/")) == package / "model"
    assert "carrier" not in sys.modules


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("package://no_such_package/model", "no package 'no_such_package' is installed"),
        ("package://json/model", "has no folder 'model'"),
        ("package://json/../..", "leads out of the package"),
        ("package://xml.dom/x", "no package 'xml.dom'"),
        ("hf://sentence-transformers/all-MiniLM-L6-v2", "names no revision"),
        ("hf://../../etc", "is not hf://org/name@revision"),
    ],
)
def test_a_source_that_cannot_be_had_says_why(source: str, words: str) -> None:
    with pytest.raises(ExportError, match=words):
        sources.resolve(source, Path("/"))


def test_a_hub_that_cannot_be_reached_is_a_clear_error(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(ExportError, match="could not be fetched from the hub") as error:
        sources.resolve("hf://sentence-transformers/no-such-model@0123abc", Path("/"))
    assert "put the model's files in a folder" in str(error.value)


def test_pickled_weights_are_refused(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(ExportError, match=r"no \.safetensors weights; pytorch_model\.bin can run code"):
        sources.resolve("model", folder.parent)


def test_a_model_that_brings_its_own_code_is_refused(folder: Path) -> None:
    (folder / "config.json").write_text(json.dumps({"auto_map": {"AutoModel": "modeling.Evil"}}))
    (folder / "tokenizer_config.json").write_text(json.dumps({"auto_map": {"AutoTokenizer": ["x.Evil", None]}}))
    with pytest.raises(ExportError, match=r"config\.json: 'auto_map'") as error:
        sources.resolve("model", folder.parent)
    assert "tokenizer_config.json: 'auto_map'" in str(error.value)


def test_a_link_out_of_the_model_is_refused(folder: Path) -> None:
    (folder.parent / "secret.json").write_text("{}")
    (folder / "tokenizer.json").symlink_to(folder.parent / "secret.json")
    assert sources.refusals(folder) == [
        "tokenizer.json: is a link to a place outside the model; copy the file into the folder"
    ]


def test_the_links_of_the_hub_clients_cache_are_taken(folder: Path, tmp_path: Path) -> None:
    blobs, snapshot = tmp_path / "models--a--b" / "blobs", tmp_path / "models--a--b" / "snapshots" / "abc"
    blobs.mkdir(parents=True)
    shutil.copytree(folder, snapshot)
    (snapshot / "model.safetensors").rename(blobs / "0123")
    (snapshot / "model.safetensors").symlink_to("../../blobs/0123")
    assert sources.refusals(snapshot) == []
    assert sources.digest(snapshot) == sources.digest(folder)


def test_the_digest_is_of_names_and_bytes_not_of_the_place(folder: Path) -> None:
    before = sources.digest(folder)
    copy = folder.parent / "copy"
    shutil.copytree(folder, copy)
    (copy / "README.md").write_text("not part of the model")
    assert sources.digest(copy) == before
    (copy / "1_Pooling" / "config.json").write_text("{ }")
    assert sources.digest(copy) != before


def test_a_type_that_the_factory_has_code_for_may_name_its_own_which_is_not_run(folder: Path) -> None:
    config = {"model_type": "llama_bidirec", "auto_map": {"AutoModel": "modeling.LlamaBidirectionalModel"}}
    (folder / "config.json").write_text(json.dumps(config))
    assert sources.resolve("model", folder.parent) == folder
