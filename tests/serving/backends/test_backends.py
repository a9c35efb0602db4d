"""Every backend, found by its name: real engines, the same answers, the same refusals."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from serving import backends
from serving.backends.base import Backend, Inputs, LoadOptions
from serving.contract.profile import Precision
from serving.errors import BackendError
from serving.tasks.embed import Encoder
from tests.support.profiles import DIMENSION, Tiny, tiny_blob
from tests.support.tiny_models import IMAGE_SIZE, picture_onnx

FP32 = LoadOptions(precision=Precision.FP32, num_threads=1)


@pytest.fixture(params=["onnxruntime", "openvino"])
def backend(request: pytest.FixtureRequest, tiny: Tiny) -> Backend:
    return backends.load(request.param, tiny.onnx if request.param == "onnxruntime" else tiny.blob, FP32)


def inputs(tiny: Tiny, *texts: str) -> Inputs:
    return tiny.spec.towers[0].collate(Encoder(tiny.tokenizer, tiny.spec).encode(texts))


def test_each_backend_reproduces_the_golden_outputs_alone_and_in_a_batch(backend: Backend, tiny: Tiny) -> None:
    texts = tiny.golden.texts[:5]
    together = backend.infer(inputs(tiny, *texts))
    assert together.dtype == np.float32
    assert together.shape == (5, DIMENSION)
    assert np.allclose(together, tiny.golden.vectors[:5], atol=1e-5)
    for text, vector in zip(texts, together, strict=True):
        assert np.allclose(backend.infer(inputs(tiny, text))[0], vector, atol=1e-5)


def test_threads_may_share_a_backend_and_keep_their_own_answers(backend: Backend, tiny: Tiny) -> None:
    texts = tiny.golden.texts[:5]
    expected = [backend.infer(inputs(tiny, text)) for text in texts]
    with ThreadPoolExecutor(4) as pool:
        got = list(pool.map(lambda n: backend.infer(inputs(tiny, texts[n % 5])), range(100)))
    for n, vector in enumerate(got):
        assert np.array_equal(vector, expected[n % 5])


def test_inputs_that_do_not_fit_are_refused_with_figures(backend: Backend) -> None:
    ids = np.ones((2, 3), np.int64)
    with pytest.raises(BackendError, match=r"inputs are \['input_ids'\], the engine takes \['attention_mask'"):
        backend.infer({"input_ids": ids})
    with pytest.raises(BackendError, match=r"\(2, 3\), \(2, 4\)"):
        backend.infer({"input_ids": ids, "attention_mask": np.ones((2, 4), np.int64)})
    with pytest.raises(BackendError, match="T is 0, the engine takes 1 to any"):
        backend.infer({"input_ids": ids[:, :0], "attention_mask": ids[:, :0]})
    with pytest.raises(BackendError, match="attention_mask is float32, the engine takes int64"):
        backend.infer({"input_ids": ids, "attention_mask": ids.astype(np.float32)})  # type: ignore[dict-item]


@pytest.fixture(params=["onnxruntime", "openvino"])
def seeing(request: pytest.FixtureRequest) -> Backend:
    """An engine of pictures, pixel_values (B, 3, S, S) float32."""
    engine = picture_onnx()
    return backends.load(request.param, engine if request.param == "onnxruntime" else tiny_blob(engine), FP32)


def pictures(num_items: int) -> Inputs:
    pixels = np.random.default_rng(0).normal(size=(num_items, 3, IMAGE_SIZE, IMAGE_SIZE))
    return {"pixel_values": pixels.astype(np.float32)}


def test_an_engine_takes_pictures_and_answers_each_as_if_it_were_alone(seeing: Backend) -> None:
    given = pictures(5)
    constants = onnx.load_from_string(picture_onnx()).graph.initializer
    weight = next(onnx.numpy_helper.to_array(value) for value in constants if value.name == "weight")
    expected = given["pixel_values"].reshape(5, -1) @ weight
    expected /= np.linalg.norm(expected, axis=1, keepdims=True)
    together = seeing.infer(given)
    assert seeing.input_names == ("pixel_values",)
    assert together.dtype == np.float32
    assert np.allclose(together, expected, atol=1e-5)
    for row in range(5):
        assert np.allclose(seeing.infer({"pixel_values": given["pixel_values"][row : row + 1]})[0], together[row])


def test_pictures_that_do_not_fit_are_refused_with_figures(seeing: Backend) -> None:
    pixels = pictures(2)["pixel_values"]
    with pytest.raises(BackendError, match=r"^C is 1, the engine takes 3 to 3; W is 7, the engine takes 8 to 8$"):
        seeing.infer({"pixel_values": pixels[:, :1, :, :7]})
    with pytest.raises(BackendError, match="B is 0, the engine takes 1 to any"):
        seeing.infer({"pixel_values": pixels[:0]})
    with pytest.raises(BackendError, match=r"float64, the engine takes float32.*\(2, 3\), the engine takes \(B, C, H"):
        seeing.infer({"pixel_values": pixels[:, :, 0, 0].astype(np.float64)})
    with pytest.raises(BackendError, match=r"inputs are \['input_ids'\], the engine takes \['pixel_values'\]"):
        seeing.infer({"input_ids": pixels})


@pytest.mark.parametrize("backend_name", ["onnxruntime", "openvino"])
def test_an_engine_that_cannot_be_fed_is_refused_with_all_that_is_wrong(backend_name: str) -> None:
    inputs = [
        helper.make_tensor_value_info("words", TensorProto.FLOAT, ["B", "T"]),
        helper.make_tensor_value_info("sound", TensorProto.DOUBLE, ["B", "T"]),
    ]
    outputs = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["B", "T"]) for name in ("first", "second")]
    nodes = [
        helper.make_node("Cast", ["sound"], ["heard"], to=TensorProto.FLOAT),
        helper.make_node("Add", ["words", "heard"], ["first"]),
        helper.make_node("Sub", ["words", "heard"], ["second"]),
    ]
    graph = helper.make_graph(nodes, "odd", inputs, outputs)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9).SerializeToString()
    engine = model if backend_name == "onnxruntime" else tiny_blob(model)
    with pytest.raises(BackendError) as caught:
        backends.load(backend_name, engine, FP32)
    message = str(caught.value)
    assert "input words is float32 with 2 axes, expected int64 (B, T) or float32 (B, C, H, W)" in message
    assert "input sound is " in message
    assert "outputs" in message


@pytest.mark.parametrize(
    ("backend_name", "engine", "precision", "words"),
    [
        ("onnxruntime", b"no engine", "fp32", "cannot load the engine"),
        ("openvino", b"no engine" * 100, "fp32", "cannot load the engine"),
        ("openvino", b"", "fp8", "runs fp32, bf16, int8 on a CPU, not fp8"),
        ("tpu", b"", "fp32", "backend 'tpu' is unknown here; this server has onnxruntime, openvino, tensorrt"),
    ],
)
def test_what_cannot_be_loaded_says_why(backend_name: str, engine: bytes, precision: str, words: str) -> None:
    with pytest.raises(BackendError, match=words):
        backends.load(backend_name, engine, LoadOptions(precision=Precision(precision)))
