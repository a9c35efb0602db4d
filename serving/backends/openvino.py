"""Run a compiled OpenVINO blob on the CPU that it was compiled for."""

from __future__ import annotations

import mmap
import os
import queue
import sys
import threading
from collections import Counter
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from typing import Any

import numpy as np
from numpy.typing import NDArray

from serving.backends.base import Inputs, LoadOptions
from serving.backends.checks import InputSpec, check_inputs, check_output, engine_problems
from serving.contract.profile import Precision
from serving.errors import BackendError

NAME = "openvino"
ISA_VARIABLE = "ONEDNN_MAX_CPU_ISA"

# A blob does not remember its hint: without one, fp32 silently runs as bf16 on a CPU that has it. The int8 graph
# carries its own int8 layers; what it keeps wide runs in bf16 where the instruction set has it, else in f32.
HINTS = {Precision.FP32: "f32", Precision.BF16: "bf16", Precision.INT8: "f32"}

WITH_BF16 = frozenset({"AVX512_CORE_BF16", "AVX512_CORE_FP16", "AVX512_CORE_AMX", "AVX512_CORE_AMX_FP16"})
# OpenVINO keeps what it prepared for the last 5 000 shapes of single operators. An int8 product's is many times a
# bf16 one's: a minute of mixed texts took 1.1 GB, and takes 0.6 GB with so many, at a few percent more time.
MAX_INT8_KERNELS = 600
NICE = 10  # of the engine's threads in a server
_DTYPES = {"i64": "int64", "f32": "float32"}
_PRECISIONS = {"f32": "fp32", "bf16": "bf16", "f16": "fp16", "i8": "int8", "u8": "int8"}
_PRODUCTS = frozenset({"FullyConnected", "MatMul", "Convolution", "ScaledDotProductAttention", "MHA"})


class OpenVino:
    """A compiled model and its infer requests, one for each stream, lent to one thread at a time.

    A batch that runs alone has a second model, compiled for more threads than a stream has.
    """

    name = NAME
    lends_all = True

    def __init__(self, compiled: Any, alone: Any = None, *, held: Any = None) -> None:
        """held: the memory in which the models' constants lie."""
        self._compiled, self._held = compiled, held
        self.input_names = tuple(i.any_name for i in compiled.inputs)
        self._specs = tuple(_spec(i) for i in compiled.inputs)
        self._requests = _requests(compiled)
        self._alone = self._requests if alone is None else _requests(alone)

    def infer(self, inputs: Inputs, *, alone: bool = False) -> NDArray[np.float32]:
        num_items = check_inputs(inputs, self._specs)
        requests = self._alone if alone else self._requests
        request = requests.get()
        try:
            request.infer(dict(inputs), share_inputs=True)
            output = request.get_output_tensor(0).data.copy()
        except Exception as error:
            raise BackendError(f"OpenVINO could not run the engine: {error}") from error
        finally:
            requests.put(request)
        return check_output(output, num_items)

    def realized_precision(self) -> Mapping[str, float]:
        counts: Counter[str] = Counter()
        for op in self._compiled.get_runtime_model().get_ops():
            info = op.get_rt_info()
            if _text(info, "layerType") in _PRODUCTS:
                precision = _text(info, "runtimePrecision")
                counts[_PRECISIONS.get(precision, precision)] += 1
        total = counts.total()
        return {precision: count / total for precision, count in sorted(counts.items())}

    def close(self) -> None:
        for requests in (self._requests, self._alone):
            while not requests.empty():
                requests.get_nowait()
        self._compiled = self._held = None


def load(engine: bytes, options: LoadOptions) -> OpenVino:
    """Blob bytes -> a model ready to run. Raises BackendError."""
    hint = hint_of(options.precision, options.cpu_isa)
    if hint is None:
        runs = ", ".join(HINTS)
        raise BackendError(f"OpenVINO runs {runs} on a CPU, not {options.precision}; choose another profile")
    openvino = import_openvino(options.cpu_isa)
    config: dict[str, Any] = {"INFERENCE_PRECISION_HINT": hint}
    if options.precision is Precision.INT8:
        config["CPU_RUNTIME_CACHE_CAPACITY"] = MAX_INT8_KERNELS

    def compiled_for(num_streams: int, num_threads: int) -> Any:
        given = {**config, "NUM_STREAMS": num_streams}
        if num_threads:
            given["INFERENCE_NUM_THREADS"] = num_threads
        return _in_thread(lambda: openvino.Core().import_model(held, "CPU", given), NICE * options.yields)

    try:
        held = openvino.Tensor(_held(engine), shared_memory=True)
        compiled = compiled_for(options.num_streams, options.num_threads)
        alone = compiled_for(1, options.alone_threads) if options.alone_threads else None
    except Exception as error:
        raise BackendError(f"OpenVINO {openvino.get_version()} cannot load the engine: {error}") from error
    problems = engine_problems([_spec(i) for i in compiled.inputs])
    if len(compiled.outputs) != 1:
        problems.append(f"the engine has {len(compiled.outputs)} outputs, expected one of shape (B, D)")
    if problems:
        raise BackendError("; ".join(problems))
    return OpenVino(compiled, alone, held=held)


def _held(engine: bytes) -> NDArray[np.uint8]:
    """The engine where OpenVINO may leave its constants: what it reads from bytes it copies, for each model anew.

    It takes only memory that can be written to, and does not write.
    """
    memory = mmap.mmap(-1, len(engine), flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    memory[:] = engine
    return np.frombuffer(memory, dtype=np.uint8)


def _requests(compiled: Any) -> queue.SimpleQueue[Any]:
    """As many as it runs at once."""
    requests: queue.SimpleQueue[Any] = queue.SimpleQueue()
    for _ in range(max(1, int(compiled.get_property("OPTIMAL_NUMBER_OF_INFER_REQUESTS")))):
        requests.put(compiled.create_infer_request())
    return requests


def _in_thread(work: Callable[[], Any], nice: int) -> Any:
    """What a thread of that niceness returns; the threads that it starts inherit it.

    The engine's threads take all cores. When a request arrives, the event loop and the tokenizers are to run at once,
    not after a time slice: with NICE, 10 % more short queries a second on two cores.
    """
    future: Future[Any] = Future()

    def run() -> None:
        if nice:
            os.nice(nice)  # of this thread alone, on Linux
        try:
            future.set_result(work())
        except BaseException as error:
            future.set_exception(error)

    threading.Thread(target=run, name="engine").start()
    return future.result()


def hint_of(precision: Precision, cpu_isa: str | None) -> str | None:
    """What OpenVINO is told to compute in; None for a precision that it does not run."""
    return HINTS[Precision.BF16] if precision is Precision.INT8 and cpu_isa in WITH_BF16 else HINTS.get(precision)


def import_openvino(cpu_isa: str | None = None) -> Any:
    """Import openvino without its telemetry and its model converter, bounded to the instruction set of an engine.

    OpenVINO takes an engine back only under the very instruction set that it was compiled for, also where the CPU has
    more; oneDNN reads the bound once in a process's life.

    `import openvino` loads both; no packet may leave an image, and the converter costs 0.2 s of each start. openvino
    does without either when it cannot be imported. Raises BackendError where openvino is not installed.
    """
    for name in ("openvino_telemetry", "openvino.tools.ovc"):
        sys.modules.setdefault(name, None)  # type: ignore[arg-type]  # None makes the import fail
    if cpu_isa is not None:
        bound = os.environ.get(ISA_VARIABLE)
        if "openvino" in sys.modules and bound != cpu_isa:
            raise BackendError(
                f"the engine is compiled for {cpu_isa}, and this process runs OpenVINO for {bound or 'this CPU'}"
            )
        os.environ[ISA_VARIABLE] = cpu_isa
    try:
        import openvino
    except ImportError as error:
        raise BackendError(f"OpenVINO is not installed here: {error}; install enginery[openvino]") from error
    return openvino


def _text(info: Any, key: str) -> str:
    return str(info[key].value) if key in info else ""


def _spec(tensor: Any) -> InputSpec:
    axes = tuple(
        (max(1, size.min_length), size.max_length if size.max_length > 0 else None) for size in tensor.partial_shape
    )  # OpenVINO writes -1 where there is no limit
    kind = tensor.element_type.get_type_name()
    return InputSpec(name=tensor.any_name, dtype=_DTYPES.get(kind, kind), axes=axes)
