"""What only a GPU can show: an engine compiled ahead of time runs on the card and agrees with ONNX Runtime."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from pipelines.compile import tensorrt_rtx
from pipelines.compile.base import CompileOrder
from pipelines.matrix.rows import RTX_TARGETS
from serving import backends
from serving.backends.base import LoadOptions
from serving.choice import hardware
from serving.contract.profile import Precision, ShapeRange
from tests.support.models import write_onnx

GPUS = hardware.detect().gpus
SHAPES = ShapeRange(min=(1, 1), opt=(2, 16), max=(4, 64))

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not GPUS, reason="needs an NVIDIA GPU and its driver"),
    pytest.mark.skipif(
        bool(GPUS) and GPUS[0].compute_capability not in RTX_TARGETS,
        reason="TensorRT for RTX compiles for no GPU of this compute capability",
    ),
]


@pytest.mark.parametrize("precision", [Precision.FP16, Precision.FP8])
def test_an_engine_compiled_ahead_of_time_agrees_with_onnx_runtime(precision: Precision, tmp_path: Path) -> None:
    capability = GPUS[0].compute_capability
    if precision is Precision.FP8 and float(capability) < 8.9:
        pytest.skip(f"fp8 needs compute capability 8.9, this GPU has {capability}")
    typed = write_onnx(tmp_path / "typed.onnx", fp16=True, fp8=precision is Precision.FP8)
    order = CompileOrder(source=typed, precision=precision, shapes=SHAPES, compute_capability=capability)
    options = LoadOptions(precision=precision, cache_dir=tmp_path)
    plan = tensorrt_rtx.compile_engine(order).data
    on_cpu = backends.load("onnxruntime", typed.read_bytes(), options)
    ids = np.random.default_rng(0).integers(1, 30, (4, 32))
    inputs = dict.fromkeys(on_cpu.input_names, np.ones_like(ids)) | {"input_ids": ids}
    expected = on_cpu.infer(inputs)
    for _ in range(2):  # the second time with the kernels that the first one kept
        on_gpu = backends.load("tensorrt-rtx", plan, options)
        assert np.einsum("nd,nd->n", on_gpu.infer(inputs), expected).min() > 0.99
        on_gpu.close()
    assert list(tmp_path.glob("*.rtxcache"))


def test_contexts_side_by_side_give_what_one_gives_and_shapes_that_come_again_too(tmp_path: Path) -> None:
    typed = write_onnx(tmp_path / "typed.onnx", fp16=True, fp8=False)
    capability = GPUS[0].compute_capability
    order = CompileOrder(source=typed, precision=Precision.FP16, shapes=SHAPES, compute_capability=capability)
    options = LoadOptions(precision=Precision.FP16, cache_dir=tmp_path, num_streams=2)
    engine = backends.load("tensorrt-rtx", tensorrt_rtx.compile_engine(order).data, options)
    rng = np.random.default_rng(0)

    def inputs(num_items: int, num_tokens: int) -> dict[str, np.ndarray]:
        ids = rng.integers(1, 30, (num_items, num_tokens))
        return dict.fromkeys(engine.input_names, np.ones_like(ids)) | {"input_ids": ids}

    asked = [inputs(b, t) for b, t in ((1, 8), (4, 64), (3, 16))]
    alone = [engine.infer(batch) for batch in asked]
    with ThreadPoolExecutor(4) as pool:
        for _ in range(20):  # the first runs compile kernels, later ones replay a CUDA graph
            for expected, found in zip(alone, pool.map(engine.infer, asked), strict=True):
                np.testing.assert_allclose(found, expected, rtol=2e-2, atol=2e-3)
    engine.close()
