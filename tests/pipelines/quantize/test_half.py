"""fp16 and bf16: Model Optimizer's bytes, rounding to nearest, and weights that are left alone."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import ml_dtypes
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from pipelines.onnx_graph import external_data
from pipelines.onnx_graph.edit import scrub
from pipelines.quantize import half, model_optimizer
from serving.contract.profile import Precision


@pytest.fixture(autouse=True)
def small_is_external(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(external_data, "MIN_EXTERNAL_BYTES", 1024)


@pytest.mark.slow
@pytest.mark.parametrize("precision", [Precision.FP16, Precision.BF16])
def test_the_bytes_are_those_of_model_optimizer_on_the_whole_graph(
    exported: Mapping[str, Path], tmp_path: Path, precision: Precision
) -> None:
    from modelopt.onnx.autocast import convert_to_f16

    source = exported["model.onnx"]
    with model_optimizer.captured():
        theirs = convert_to_f16(onnx.load(source), low_precision_type=precision.value, keep_io_types=True)
        externalized, folder = external_data.read_externalized(source, tmp_path)
        assert sum(external_data.is_external(tensor) for tensor in externalized.graph.initializer) > 10
        ours = half.with_casts(externalized, precision, tmp_path)
    for model in (theirs, ours):
        scrub(model)
    external_data.write(
        ours, tmp_path / "ours.onnx", folder, external=False, content=lambda tensor: half.rounded(tensor, folder)
    )
    assert (tmp_path / "ours.onnx").read_bytes() == theirs.SerializeToString(deterministic=True)


@pytest.mark.parametrize(
    ("data_type", "expected"),
    [
        (TensorProto.FLOAT16, np.array([0, 65504, -65504, 2**-24, 2**-24, 1.0009765625, 0.1], np.float16)),
        (TensorProto.BFLOAT16, np.array([0, 1e6, -1e6, 1e-9, -1e-9, 1.001, 0.1], ml_dtypes.bfloat16)),
        (TensorProto.FLOAT, np.array([0, 1e6, -1e6, 1e-9, -1e-9, 1.001, 0.1], np.float32)),
    ],
)
def test_weights_are_rounded_to_nearest_and_fp16_saturates(
    tmp_path: Path, data_type: int, expected: np.ndarray
) -> None:
    values = np.array([0, 1e6, -1e6, 1e-9, -1e-9, 1.001, 0.1], np.float32)
    tensor = numpy_helper.from_array(np.tile(values, 100), "weight")
    graph = helper.make_graph([], "one tensor", [], [], [tensor])
    path, _ = external_data.write(helper.make_model(graph), tmp_path / "m.onnx", tmp_path, external=True)
    (externalized,) = external_data.read(path).graph.initializer
    externalized.data_type = data_type
    assert half.rounded(externalized, tmp_path) == np.tile(expected, 100).tobytes()


def test_weights_that_are_no_floats_keep_their_bytes(tmp_path: Path) -> None:
    tensor = numpy_helper.from_array(np.arange(500), "ids")
    graph = helper.make_graph([], "one tensor", [], [], [tensor])
    path, _ = external_data.write(helper.make_model(graph), tmp_path / "m.onnx", tmp_path, external=True)
    (externalized,) = external_data.read(path).graph.initializer
    assert half.rounded(externalized, tmp_path) == np.arange(500).tobytes()
