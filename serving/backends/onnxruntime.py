"""Run an ONNX file with ONNX Runtime on the CPU: the generic profile, and the judge of typed ONNX."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from serving.backends.base import Inputs, LoadOptions
from serving.backends.checks import InputSpec, check_inputs, check_output, engine_problems
from serving.contract.profile import Precision
from serving.errors import BackendError

NAME = "onnxruntime"
_DTYPES = {"tensor(int64)": "int64", "tensor(float)": "float32"}


class OnnxRuntime:
    """A session. ONNX Runtime allows run() from several threads at once."""

    name = NAME
    lends_all = False

    def __init__(self, session: Any) -> None:
        self._session = session
        inputs = session.get_inputs()
        self.input_names = tuple(i.name for i in inputs)
        self._specs = tuple(_spec(i) for i in inputs)

    def infer(self, inputs: Inputs, *, alone: bool = False) -> NDArray[np.float32]:
        num_items = check_inputs(inputs, self._specs)
        try:
            (output,) = self._session.run(None, dict(inputs))
        except Exception as error:  # ONNX Runtime raises classes of its extension module
            raise BackendError(f"ONNX Runtime could not run the engine: {error}") from error
        return check_output(output, num_items)

    def realized_precision(self) -> Mapping[str, float]:
        return {}  # a session does not tell what its nodes became

    def close(self) -> None:
        self._session = None


def load(engine: bytes | Path, options: LoadOptions) -> OnnxRuntime:
    """ONNX bytes -> a session on the CPU; or a file, whose weights may lie beside it. Raises BackendError."""
    os.environ["ORT_DISABLE_TELEMETRY"] = (
        "1"  # read when it is imported; the call below comes too late to stop all of it
    )
    try:
        import onnxruntime
    except ImportError as error:
        raise BackendError(f"ONNX Runtime is not installed here: {error}; install enginery[serving]") from error
    onnxruntime.disable_telemetry_events()
    config = onnxruntime.SessionOptions()
    config.log_severity_level = 3
    config.inter_op_num_threads = 1
    # A session runs as many batches at once as it is asked to: each on its caller's thread and on these, less one.
    config.intra_op_num_threads = -(-options.num_threads // options.num_streams)
    # Spinning workers take the cores from tokenizers and the event loop between two batches.
    config.add_session_config_entry("session.intra_op.allow_spinning", "0")
    if options.precision is Precision.FP8:
        # Above BASIC the optimizer makes an invalid graph of fp8 Q/DQ: "Type 'tensor(float8e4m3fn)' ... is invalid".
        config.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
    try:
        session = onnxruntime.InferenceSession(engine, config, providers=["CPUExecutionProvider"])
    except Exception as error:
        raise BackendError(f"ONNX Runtime {onnxruntime.__version__} cannot load the engine: {error}") from error
    # It keeps the file as long as the session, to load it again for other providers: of BERT-large, 1.3 GB.
    session._model_bytes = None
    _check(session)
    return OnnxRuntime(session)


def _check(session: Any) -> None:
    problems = engine_problems([_spec(i) for i in session.get_inputs()])
    if len(session.get_outputs()) != 1:
        problems.append(f"outputs are {[o.name for o in session.get_outputs()]}, expected one of shape (B, D)")
    if problems:
        raise BackendError("; ".join(problems))


def _spec(tensor: Any) -> InputSpec:
    """Names stand for any size of an axis, a number for exactly that one."""
    dtype = _DTYPES.get(tensor.type, tensor.type)
    axes = tuple((size, size) if isinstance(size, int) else (1, None) for size in tensor.shape)
    return InputSpec(name=tensor.name, dtype=dtype, axes=axes)
