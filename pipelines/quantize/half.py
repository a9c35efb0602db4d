"""Write fp16 or bf16 into an ONNX graph: Model Optimizer places the casts, weights are rounded here, one at a time.

Model Optimizer copies a graph with all its weights over and over: 392 s and 18.1 GiB for the 2.5 GB image tower of
ViT-H/14. It looks at the values of large tensors only to round them, so it is given an externalized graph. The bytes
are those of `convert_to_f16` on the whole graph (tests/pipelines/quantize/test_half.py).
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipelines.onnx_graph import external_data
from serving.contract.profile import Precision

STAND_IN = "stand-in"  # an empty file: ONNX wants external data to exist


def with_casts(model: Any, precision: Precision, scratch: Path) -> Any:
    """An externalized fp32 graph -> fp16 or bf16, inputs and outputs as they were. Its locations stay those of fp32."""
    from modelopt.onnx.autocast import convert_to_f16

    locations = [external_data.location_of(t)[0] for t in model.graph.initializer if external_data.is_external(t)]
    _relocate(model, STAND_IN)
    (scratch / STAND_IN).touch()
    with contextlib.chdir(scratch), _external_initializers():
        typed = convert_to_f16(model, low_precision_type=precision.value, keep_io_types=True)
    _relocate(typed, locations[0] if locations else "")  # they all lie in one file
    return typed


def rounded(tensor: Any, folder: Path) -> bytes:
    """The fp32 values at an external tensor's location, in the type that the tensor has now.

    As Model Optimizer rounds them: fp16 saturates, and what is not zero stays so.
    """
    import ml_dtypes

    data = external_data.tensor_bytes(tensor, folder)
    if tensor.data_type == tensor.FLOAT16:
        return _fp16(np.frombuffer(data, np.float32)).tobytes()
    if tensor.data_type == tensor.BFLOAT16:
        return np.frombuffer(data, np.float32).astype(ml_dtypes.bfloat16).tobytes()
    return data  # fp32 where an operator has nothing lower, or integers


def _fp16(values: NDArray[np.float32]) -> NDArray[np.float16]:
    limits = np.finfo(np.float16)
    most, least = float(limits.max), float(limits.smallest_subnormal)
    if np.abs(values).max(initial=0) > most:
        values = np.clip(values, -most, most)
    tiny = (values != 0) & (np.abs(values) < least)
    if tiny.any():
        values = np.where(tiny, np.float32(least), values)
    return values.astype(np.float16)


def _relocate(model: Any, location: str) -> None:
    for tensor in model.graph.initializer:
        if external_data.is_external(tensor):
            external_data.externalize(tensor, location, *external_data.location_of(tensor)[1:])


@contextmanager
def _external_initializers() -> Iterator[None]:
    """Have Model Optimizer's converter change only the type of external tensors."""
    from modelopt.onnx.autocast import convert
    from modelopt.onnx.autocast.precisionconverter import PrecisionConverter

    class ExternalConverter(PrecisionConverter):  # type: ignore[misc]  # modelopt is not typed here
        def _convert_initializer_data(self, init: Any, from_type: Any, to_type: Any) -> Any:
            if not external_data.is_external(init):
                return super()._convert_initializer_data(init, from_type, to_type)
            typed = type(init)()
            typed.CopyFrom(init)
            typed.data_type = to_type.onnx_type
            return typed

    convert.PrecisionConverter = ExternalConverter
    try:
        yield
    finally:
        convert.PrecisionConverter = PrecisionConverter
