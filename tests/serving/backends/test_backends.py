"""Backends: real engines, the same answers, the same refusals."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from serving import backends
from serving.backends import openvino, tensorrt
from serving.backends.base import Backend, Inputs, LoadOptions
from serving.backends.checks import InputSpec, check_inputs, engine_problems
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


def test_onnx_runtime_lets_the_file_go_once_it_is_loaded(tiny: Tiny) -> None:
    engine = bytes(bytearray(tiny.onnx))  # nobody else holds this copy
    before = sys.getrefcount(engine)
    loaded = backends.load("onnxruntime", engine, FP32)
    assert sys.getrefcount(engine) == before
    assert np.allclose(loaded.infer(inputs(tiny, tiny.golden.texts[0]))[0], tiny.golden.vectors[0], atol=1e-5)


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


def test_every_input_is_held_to_its_own_limits_and_a_mistake_in_common_is_said_once() -> None:
    ids = InputSpec(name="input_ids", dtype="int64", axes=((1, 8), (1, None)))
    mask = InputSpec(name="attention_mask", dtype="int64", axes=((1, 8), (1, 32)))
    assert engine_problems([ids, mask]) == []

    def given(num_items: int, num_tokens: int) -> Inputs:
        return {name: np.ones((num_items, num_tokens), np.int64) for name in ("input_ids", "attention_mask")}

    assert check_inputs(given(8, 32), [ids, mask]) == 8
    with pytest.raises(BackendError, match=r"^B is 9, the engine takes 1 to 8; T is 33, the engine takes 1 to 32$"):
        check_inputs(given(9, 33), [ids, mask])
    with pytest.raises(BackendError, match="the engine takes 1 to 8"):
        check_inputs(given(0, 1), [ids, mask])


def test_openvino_tells_the_precision_that_it_runs(tiny: Tiny) -> None:
    loaded = backends.load("openvino", tiny.blob, FP32)
    assert loaded.realized_precision() == {"fp32": 1.0}
    loaded.close()


def test_openvino_is_imported_without_its_telemetry() -> None:
    """In a process of its own: here another test may have imported openvino in its own way."""
    code = (
        "import sys; from serving.backends.openvino import import_openvino; import_openvino(); "
        "sys.exit(sys.modules['openvino_telemetry'] is not None)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


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


def has_gpu() -> bool:
    try:
        from cuda.bindings import runtime
    except ImportError:
        return False
    status, count = runtime.cudaGetDeviceCount()
    return bool(status == runtime.cudaError_t.cudaSuccess and count)


def test_in_a_server_openvinos_threads_let_all_others_go_first(tiny: Tiny, tmp_path: Path) -> None:
    """In a process of its own: niceness is a thread's, and threads are shared by all engines of a process."""
    code = """
import os, sys
from pathlib import Path
from serving import backends
from serving.backends.base import LoadOptions
from serving.contract.profile import Precision
options = LoadOptions(precision=Precision.FP32, num_threads=2, num_streams=2, yields=True)
engine = backends.load("openvino", Path(sys.argv[1]).read_bytes(), options)
niceness = [os.getpriority(os.PRIO_PROCESS, int(thread)) for thread in os.listdir("/proc/self/task")]
print(os.getpriority(os.PRIO_PROCESS, 0), max(niceness))
"""
    (tmp_path / "engine.blob").write_bytes(tiny.blob)
    command = [sys.executable, "-c", code, str(tmp_path / "engine.blob")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    now = os.getpriority(os.PRIO_PROCESS, 0)
    assert done.stdout.split() == [str(now), str(min(19, now + openvino.NICE))]


def test_openvino_answers_the_same_with_the_threads_that_it_lends_to_a_batch_that_runs_alone(tiny: Tiny) -> None:
    options = LoadOptions(precision=Precision.FP32, num_threads=2, num_streams=2, alone_threads=2)
    engine = openvino.load(tiny.blob, options)
    assert engine.lends_all
    assert engine._alone is not engine._requests
    assert (engine._requests.qsize(), engine._alone.qsize()) == (2, 1)
    batch = inputs(tiny, *tiny.golden.texts[:5])
    for alone in (True, False):
        assert np.allclose(engine.infer(batch, alone=alone), tiny.golden.vectors[:5], atol=1e-5)
    assert (engine._requests.qsize(), engine._alone.qsize()) == (2, 1)
    engine.close()
    own = openvino.load(tiny.blob, replace(options, alone_threads=0))
    assert own._alone is own._requests


def test_the_bindings_have_all_that_the_tensorrt_backend_calls() -> None:
    source = Path(tensorrt.__file__).read_text("utf-8")
    runtime = pytest.importorskip("cuda.bindings.runtime")
    called = set(re.findall(r"\bapi\.(\w+)", source))
    assert {"cudaMallocHost", "cudaFreeHost", "cudaMemcpyAsync"} <= called
    assert {name for name in called if not hasattr(runtime, name)} == set()
    bindings = tensorrt.import_tensorrt_rtx()
    assert bindings.CudaGraphStrategy.WHOLE_GRAPH_CAPTURE
    for owner, names in {
        "IRuntimeConfig": ("cuda_graph_strategy", "create_runtime_cache", "set_runtime_cache"),
        "IExecutionContext": ("set_input_shape", "set_tensor_address", "execute_async_v3"),
        "ICudaEngine": ("create_execution_context", "create_runtime_config", "get_tensor_profile_shape"),
    }.items():
        assert [name for name in names if not hasattr(getattr(bindings, owner), name)] == []


@pytest.mark.parametrize("flavour", ["tensorrt", "tensorrt-rtx"])
@pytest.mark.skipif(has_gpu(), reason="this machine has a GPU")
def test_tensorrt_without_a_gpu_or_its_libraries_says_so(flavour: str) -> None:
    with pytest.raises(BackendError, match=r"not installed here|is there a GPU here, and its driver\?"):
        backends.load(flavour, b"plan", LoadOptions(precision=Precision.FP16))


@pytest.mark.gpu
@pytest.mark.skipif(not has_gpu(), reason="needs an NVIDIA GPU and its driver")
def test_tensorrt_refuses_a_damaged_plan() -> None:
    with pytest.raises(BackendError, match=r"another version or GPU, or is damaged|not installed"):
        backends.load("tensorrt-rtx", b"plan" * 100, LoadOptions(precision=Precision.FP16))
