"""TensorRT's two flavours, as far as they can be met without a GPU."""

from __future__ import annotations

import pytest

from serving import backends
from serving.backends import tensorrt
from serving.backends.base import LoadOptions
from serving.contract.profile import Precision
from serving.errors import BackendError


def has_gpu() -> bool:
    try:
        from cuda.bindings import runtime
    except ImportError:
        return False
    status, count = runtime.cudaGetDeviceCount()
    return bool(status == runtime.cudaError_t.cudaSuccess and count)


def test_the_bindings_have_all_that_the_tensorrt_backend_calls() -> None:
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
