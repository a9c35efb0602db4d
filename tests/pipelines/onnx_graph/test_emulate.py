"""fp16 and bf16 emulated in float32: rounding after every operator, overflow as on a GPU."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import onnxruntime
from onnx import TensorProto, helper, numpy_helper

from pipelines.onnx_graph.emulate import emulate
from serving.contract.profile import Precision
from tests.support.models import bf16_product


def test_bf16_emulated_in_float32_rounds_after_every_operator():
    x = np.random.default_rng(1).normal(size=(2, 8)).astype(np.float32)
    weight = np.random.default_rng(0).normal(size=(8, 4)).astype(np.float32).astype(ml_dtypes.bfloat16)

    def rounded(values: np.ndarray) -> np.ndarray:
        return values.astype(ml_dtypes.bfloat16).astype(np.float32)

    product = rounded(rounded(x) @ weight.astype(np.float32))
    expected = rounded(product.T * product.T)
    emulated, note = emulate(bf16_product(), Precision.BF16)
    (found,) = onnxruntime.InferenceSession(emulated).run(None, {"x": x})
    assert np.array_equal(found, expected)
    assert not np.array_equal(found, ((x @ weight.astype(np.float32)).T) ** 2)
    assert "rounded to bf16" in note


def fp16_square() -> bytes:
    """(x @ weight) ** 2 in fp16."""
    weight = numpy_helper.from_array(np.eye(8, dtype=np.float16), "weight")
    nodes = [
        helper.make_node("Cast", ["x"], ["x16"], to=TensorProto.FLOAT16),
        helper.make_node("MatMul", ["x16", "weight"], ["product"]),
        helper.make_node("Mul", ["product", "product"], ["square"]),
        helper.make_node("Sqrt", ["square"], ["root"]),
        helper.make_node("Cast", ["root"], ["y"], to=TensorProto.FLOAT),
    ]
    inputs = [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["B", 8])]
    outputs = [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["B", 8])]
    graph = helper.make_graph(nodes, "square", inputs, outputs, [weight])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10).SerializeToString()


def test_an_fp16_graph_that_overflows_on_a_gpu_overflows_when_it_is_judged():
    x = np.full((1, 8), 300, np.float32)  # its square, 90 000, is more than fp16 holds
    (as_it_is,) = onnxruntime.InferenceSession(fp16_square()).run(None, {"x": x})
    assert np.isfinite(as_it_is).all(), "ONNX Runtime began to compute in fp16: nothing has to be written out any more"
    judged, note = emulate(fp16_square(), Precision.FP16)
    (found,) = onnxruntime.InferenceSession(judged).run(None, {"x": x})
    assert np.isinf(found).all()
    assert "rounded to fp16" in note
    (small,) = onnxruntime.InferenceSession(judged).run(None, {"x": np.full((1, 8), 3, np.float32)})
    assert np.array_equal(small, np.full((1, 8), 3, np.float32))
