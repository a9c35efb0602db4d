"""Backends: real engines, the same answers, the same refusals."""

from __future__ import annotations

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from serving import backends
from serving.backends.base import Backend, Inputs, LoadOptions
from serving.errors import BackendError
from serving.profile import Precision
from serving.tasks.embed import Encoder, collate
from tests.serving.conftest import DIMENSION, Tiny

FP32 = LoadOptions(precision=Precision.FP32, num_threads=1)


@pytest.fixture(params=["onnxruntime", "openvino"])
def backend(request: pytest.FixtureRequest, tiny: Tiny) -> Backend:
    return backends.load(request.param, tiny.onnx if request.param == "onnxruntime" else tiny.blob, FP32)


def inputs(tiny: Tiny, *texts: str) -> Inputs:
    return collate(Encoder(tiny.tokenizer, tiny.spec).encode(texts), tiny.spec)


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
