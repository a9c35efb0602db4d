"""External data: the same answers, aligned tensors, the same bytes in any folder, no file outside."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import helper, numpy_helper

from pipelines.errors import ExportError
from pipelines.onnx_graph import external_data
from pipelines.recipes.exporter import to_onnx
from tests.support.models import body

TOKENS = {name: np.arange(6, dtype=np.int64).reshape(2, 3) for name in ("input_ids", "attention_mask")}


@pytest.fixture(autouse=True)
def small_is_external(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(external_data, "MIN_EXTERNAL_BYTES", 1024)


def model() -> Any:
    """Two large weights, and a constant in a node."""
    made = body()
    made.ir_version = 10
    graph = made.graph
    half = numpy_helper.from_array(np.full(64, 0.5, np.float32), "half")
    graph.node[-1].output[0] = "product"
    graph.node.append(helper.make_node("Constant", [], ["half"], name="half", value=half))
    graph.node.append(helper.make_node("Mul", ["product", "half"], ["last_hidden_state"], name="halved"))
    return made


def answer(path: Path) -> Any:
    return onnxruntime.InferenceSession(path).run(None, TOKENS)[0]


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.fixture
def whole(tmp_path: Path) -> Path:
    (path,) = external_data.write(model(), tmp_path / "whole.onnx", tmp_path, external=False)
    return path


def external(folder: Path) -> list[Path]:
    folder.mkdir()
    return external_data.write(model(), folder / "image.onnx", folder, external=True)


def test_a_graph_with_external_data_answers_as_the_whole_does(whole: Path, tmp_path: Path) -> None:
    graph, data = external(tmp_path / "out")
    assert (graph.name, data.name) == ("image.onnx", "image.onnx.data")
    onnx.checker.check_model(graph)
    assert np.array_equal(answer(graph), answer(whole))
    assert graph.stat().st_size < 2000 < data.stat().st_size


def test_every_tensor_begins_where_it_can_be_mapped(tmp_path: Path) -> None:
    graph, data = external(tmp_path / "out")
    places = [external_data.location_of(t)[1:] for t in external_data.read(graph).graph.initializer if t.external_data]
    assert len(places) == 2
    assert all(offset % external_data.ALIGNMENT == 0 for offset, _ in places)
    assert data.stat().st_size == max(offset + length for offset, length in places)


def test_the_same_graph_gives_the_same_two_files_in_any_folder(tmp_path: Path) -> None:
    first, second = ([sha256(path) for path in external(tmp_path / name)] for name in ("one", "another"))
    assert first == second


def test_an_externalized_graph_holds_no_weights_and_is_made_whole_again(whole: Path, tmp_path: Path) -> None:
    (tmp_path / "scratch").mkdir()
    externalized, folder = external_data.read_externalized(whole, tmp_path / "scratch")
    assert externalized.ByteSize() < 2000
    assert external_data.size_of(externalized) > 40_000
    (again,) = external_data.write(externalized, tmp_path / "again.onnx", folder, external=False)
    assert again.read_bytes() == whole.read_bytes()


def test_two_blobs_of_a_store_become_a_file_that_finds_its_weights(whole: Path, tmp_path: Path) -> None:
    for path, name in zip(external(tmp_path / "out"), ("0a", "0b"), strict=True):
        path.rename(tmp_path / name)  # as the store names them: by their digests
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    inputs = {"engine.image": tmp_path / "0a", "engine.image.data": tmp_path / "0b", "engine.text": whole}
    found = external_data.stage_input(inputs, "engine.image", scratch)
    assert external_data.has_external_data(found)
    assert np.array_equal(answer(found), answer(whole))
    assert external_data.stage_input(inputs, "engine.text", scratch) == whole
    assert not external_data.has_external_data(whole)
    assert external_data.size_bytes(inputs, "engine.image") == sum(
        (tmp_path / name).stat().st_size for name in ("0a", "0b")
    )


@pytest.mark.parametrize("location", ["../escaped.data", "/escaped.data", "a/b.data"])
def test_a_graph_that_names_a_file_elsewhere_is_refused(tmp_path: Path, location: str) -> None:
    graph, data = external(tmp_path / "out")
    changed = external_data.read(graph)
    for tensor in changed.graph.initializer:
        external_data.externalize(tensor, location, *external_data.location_of(tensor)[1:])
    graph.write_bytes(changed.SerializeToString())
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    with pytest.raises(ExportError, match="keeps its weights in"):
        external_data.stage_input({"x": graph, "x.data": data}, "x", scratch)
    assert not list(scratch.iterdir())


def test_data_that_ends_too_early_is_told(tmp_path: Path) -> None:
    graph, data = external(tmp_path / "out")
    data.write_bytes(data.read_bytes()[:-1])
    tensor = [t for t in external_data.read(graph).graph.initializer if external_data.is_external(t)][-1]
    with pytest.raises(ExportError, match="ends in the middle of"):
        external_data.tensor_array(tensor, tmp_path / "out")


def exported_in_pieces(folder: Path) -> Path:
    """As exporters write a large model: a file for each tensor, of which neither offset nor length is told."""
    (folder / "body").mkdir(parents=True)
    path = folder / "body" / "model.onnx"
    onnx.save_model(
        model(),
        path,
        save_as_external_data=True,
        all_tensors_to_one_file=False,
        size_threshold=0,
        convert_attribute=True,
    )
    pieces = onnx.load(path, load_external_data=False)
    constants = [attribute.t for node in pieces.graph.node for attribute in node.attribute if attribute.HasField("t")]
    assert [constant.data_location for constant in constants] == [onnx.TensorProto.EXTERNAL]
    for tensor in (*pieces.graph.initializer, *constants):
        kept = [entry for entry in tensor.external_data if entry.key == "location"]
        del tensor.external_data[:]
        tensor.external_data.extend(kept)
    path.write_bytes(pieces.SerializeToString())
    return path


def test_what_an_exporter_wrote_in_pieces_is_read_whole_if_it_is_small(tmp_path: Path) -> None:
    read = to_onnx.load(exported_in_pieces(tmp_path), tmp_path)
    assert not external_data.is_externalized(read)
    assert read.SerializeToString(deterministic=True) == model().SerializeToString(deterministic=True)


def test_what_is_large_stays_in_pieces_until_it_is_written(
    whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(external_data, "LARGE_BYTES", 10_000)
    read = to_onnx.load(exported_in_pieces(tmp_path / "scratch"), tmp_path / "scratch")
    assert external_data.is_externalized(read)
    assert read.ByteSize() < 2000
    graph, data = external_data.write(read, tmp_path / "model.onnx", tmp_path / "scratch", external=True)
    assert np.array_equal(answer(graph), answer(whole))
    assert [sha256(path) for path in (graph, data)] == [sha256(p) for p in written_at_once(tmp_path / "at-once")]


def test_a_file_of_a_quarter_of_a_large_model_is_run_with_external_data(
    whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    size = whole.stat().st_size
    monkeypatch.setattr(external_data, "LARGE_BYTES", 4 * size)
    assert external_data.externalize_file(whole, tmp_path) == whole
    monkeypatch.setattr(external_data, "LARGE_BYTES", 4 * size - 4)
    externalized = external_data.externalize_file(whole, tmp_path)
    assert external_data.has_external_data(externalized)
    assert external_data.externalize_file(externalized, tmp_path) == externalized
    assert np.array_equal(answer(externalized), answer(whole))


def written_at_once(folder: Path) -> list[Path]:
    folder.mkdir()
    return external_data.write(model(), folder / "model.onnx", folder, external=True)
