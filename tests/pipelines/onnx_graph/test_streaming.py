"""ONNX larger than memory: the same bytes as protobuf's, the memory of one tensor, and files that are damaged."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from pipelines.errors import ExportError
from pipelines.onnx_graph import external_data, streaming

MIN_EXTERNAL_BYTES = 1024


def model() -> Any:
    """Weights whose lengths take one to three bytes to write, small ones between them, and fields on every side."""
    rng = np.random.default_rng(0)
    sizes = {"table": (300, 64), "small": (4,), "column": (260, 1), "bias": (16,), "empty": (0,)}
    tensors = [numpy_helper.from_array(rng.normal(size=size).astype(np.float32), n) for n, size in sizes.items()]
    tensors[0].doc_string = "stands behind the bytes"
    tensors.append(helper.make_tensor("listed", TensorProto.INT64, [2], [7, 8]))
    nodes = [helper.make_node("Identity", [name], [f"{name}/out"], name=name) for name in sizes]
    outputs = [helper.make_tensor_value_info("table/out", TensorProto.FLOAT, ["B", 64])]
    graph = helper.make_graph(nodes, "all kinds", [], outputs, tensors, doc_string="d")
    graph.value_info.append(helper.make_tensor_value_info("small/out", TensorProto.FLOAT, [4]))
    graph.metadata_props.add(key="k", value="v")
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10, producer_name="p")
    made.metadata_props.add(key="model", value="w" * 200)
    return made


@pytest.fixture
def whole(tmp_path: Path) -> Path:
    path = tmp_path / "whole.onnx"
    path.write_bytes(model().SerializeToString(deterministic=True))
    return path


def read(path: Path) -> Any:
    return streaming.read(path, MIN_EXTERNAL_BYTES, external_data.externalize)


def write(externalized: Any, path: Path, folder: Path) -> Path:
    with path.open("wb") as file:
        streaming.write(
            externalized,
            file,
            lambda data_type: external_data.dtype_of(data_type).itemsize,
            lambda tensor: external_data.tensor_bytes(tensor, folder),
        )
    return path


def test_large_tensors_stay_in_the_file_and_are_found_there(whole: Path) -> None:
    externalized = read(whole)
    assert [t.name for t in externalized.graph.initializer if external_data.is_external(t)] == ["table", "column"]
    assert externalized.ByteSize() < 3000 < whole.stat().st_size
    for ours, theirs in zip(externalized.graph.initializer, model().graph.initializer, strict=True):
        assert np.array_equal(external_data.tensor_array(ours, whole.parent), numpy_helper.to_array(theirs))


def test_what_is_read_and_written_again_has_the_same_bytes(whole: Path, tmp_path: Path) -> None:
    assert write(read(whole), tmp_path / "again.onnx", tmp_path).read_bytes() == whole.read_bytes()
    onnx.checker.check_model(tmp_path / "again.onnx")


def test_all_but_the_large_tensors_is_as_protobuf_reads_it(whole: Path) -> None:
    externalized, expected = read(whole), onnx.load(whole)
    for found in (externalized, expected):
        found.graph.ClearField("initializer")
    assert externalized == expected


@pytest.mark.parametrize("kept", [0.2, 0.9, 0.999])
def test_a_file_that_ends_too_early_is_refused(whole: Path, kept: float) -> None:
    data = whole.read_bytes()
    whole.write_bytes(data[: int(len(data) * kept)])
    with pytest.raises(ExportError, match="is no whole ONNX file"):
        read(whole)


@pytest.mark.parametrize("content", [b"\xff" * 40, b"\x0b\x0b", b"{}", b"\x08"])
def test_what_is_no_onnx_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "model.onnx").write_bytes(content)
    with pytest.raises(ExportError, match="is no whole ONNX file"):
        read(tmp_path / "model.onnx")


def test_weights_of_another_shape_are_refused(whole: Path, tmp_path: Path) -> None:
    externalized = read(whole)
    externalized.graph.initializer[0].dims[0] = 301
    with pytest.raises(ExportError, match=r"table has 76800 bytes, its shape \[301, 64\] takes 77056"):
        write(externalized, tmp_path / "again.onnx", tmp_path)


GROWTH = """
import resource, sys
from pathlib import Path
import numpy as np
from onnx import TensorProto, helper
from pipelines.onnx_graph import external_data

folder, num, size = Path(sys.argv[1]), 24, 2**21
graph = helper.make_graph([], "large", [], [])
model = helper.make_model(graph)
with (folder / "weights").open("wb") as file:
    for number in range(num):
        tensor = TensorProto(name=str(number), data_type=TensorProto.FLOAT, dims=[size])
        external_data.externalize(tensor, "weights", file.tell(), 4 * size)
        model.graph.initializer.append(tensor)
        file.write(np.full(size, number, np.float32).tobytes())
peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
before = peak()
(path,) = external_data.write(model, folder / "whole.onnx", folder, external=False)
externalized, place = external_data.read_externalized(path, folder)
external_data.write(externalized, folder / "again.onnx", place, external=False)
print(peak() - before, path.stat().st_size)
"""


def test_memory_is_that_of_a_tensor_and_not_of_the_weights(tmp_path: Path) -> None:
    """200 MB in tensors of 8 MB, written, read without them and written again."""
    command = [sys.executable, "-c", GROWTH, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    grown, size = map(int, done.stdout.split())
    assert size > 200e6
    assert grown < 60e6
    assert (tmp_path / "again.onnx").read_bytes() == (tmp_path / "whole.onnx").read_bytes()
