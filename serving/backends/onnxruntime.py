"""Run an ONNX file with ONNX Runtime on the CPU: the generic profile, and the judge of typed ONNX."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from serving.backends.base import Inputs, LoadOptions
from serving.backends.checks import Range, check_inputs, check_output
from serving.errors import BackendError
from serving.profile import Precision

NAME = "onnxruntime"


class OnnxRuntime:
    """A session. ONNX Runtime allows run() from several threads at once."""

    name = NAME

    def __init__(self, session: Any) -> None:
        self._session = session
        inputs = session.get_inputs()
        self.input_names = tuple(i.name for i in inputs)
        self._batch, self._tokens = (_range([i.shape[axis] for i in inputs]) for axis in (0, 1))

    def infer(self, inputs: Inputs) -> NDArray[np.float32]:
        num_items, _ = check_inputs(inputs, self.input_names, batch=self._batch, tokens=self._tokens)
        try:
            (output,) = self._session.run(None, dict(inputs))
        except Exception as error:  # ONNX Runtime raises classes of its extension module
            raise BackendError(f"ONNX Runtime could not run the engine: {error}") from error
        return check_output(output, num_items)

    def realized_precision(self) -> Mapping[str, float]:
        return {}  # a session does not tell what its nodes became

    def close(self) -> None:
        self._session = None


def load(engine: bytes, options: LoadOptions) -> OnnxRuntime:
    """ONNX bytes -> a session on the CPU. Raises BackendError."""
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
    config.intra_op_num_threads = options.num_threads
    # Spinning workers take the cores from tokenizers and the event loop between two batches.
    config.add_session_config_entry("session.intra_op.allow_spinning", "0")
    if options.precision is Precision.FP8:
        # Above BASIC the optimizer makes an invalid graph of fp8 Q/DQ: "Type 'tensor(float8e4m3fn)' ... is invalid".
        config.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
    try:
        session = onnxruntime.InferenceSession(engine, config, providers=["CPUExecutionProvider"])
    except Exception as error:
        raise BackendError(f"ONNX Runtime {onnxruntime.__version__} cannot load the engine: {error}") from error
    _check(session)
    return OnnxRuntime(session)


def _check(session: Any) -> None:
    problems = [
        f"input {i.name} is {i.type} {i.shape}, expected tensor(int64) (B, T)"
        for i in session.get_inputs()
        if i.type != "tensor(int64)" or len(i.shape) != 2
    ]
    if len(session.get_outputs()) != 1:
        problems.append(f"outputs are {[o.name for o in session.get_outputs()]}, expected one of shape (B, D)")
    if problems:
        raise BackendError("; ".join(problems))


def _range(sizes: list[int | str | None]) -> Range:
    """What an axis may be: names stand for any size, a number for exactly that one."""
    fixed = [size for size in sizes if isinstance(size, int)]
    return (fixed[0], fixed[0]) if fixed else (1, None)
