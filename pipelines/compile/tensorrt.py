"""Compile with TensorRT in either flavour: for RTX ahead of time with no GPU, or the classic one on the GPU itself."""

from __future__ import annotations

import importlib
import importlib.util
import re
from types import ModuleType
from typing import Any

from pipelines.compile.base import CompileOrder, Engine
from pipelines.errors import CompileError
from pipelines.onnx_graph import external_data
from serving.backends.tensorrt import import_tensorrt_rtx
from serving.errors import BackendError

# The GPU's name in words, for messages: what a person calls a compute capability.
SKUS = {
    "7.5": "T4",
    "8.0": "A100",
    "8.6": "A10G, RTX A6000",
    "8.9": "L4, L40S, RTX 4090, RTX 6000 Ada",
    "9.0": "H100, H200",
    "10.0": "B200",
    "12.0": "RTX 5090, RTX PRO 6000 Blackwell",
    "12.1": "GB10",
}
# What TensorRT says -> what a person can do about it.
REMEDIES = {
    "HW-specific datatypes: fp8": "fp8 needs compute capability 8.9 or newer; use fp16 or int8 for this SKU",
    "HW-specific datatypes: b16": "bf16 needs compute capability 8.0 or newer; use fp16 for this SKU",
    "FP32 GEMM is not supported": "TensorRT for RTX has no fp32 products on this GPU; use fp16 for this SKU",
}


def compile_with_rtx(order: CompileOrder) -> Engine:
    """For the compute capability of the order, on any machine. Raises CompileError."""
    trt = load_rtx()
    cc = order.compute_capability or ""
    target = getattr(trt.ComputeCapability, f"SM{cc.replace('.', '')}", None) if cc else None
    if target is None:
        targets = sorted(n for n in vars(trt.ComputeCapability) if re.fullmatch(r"SM\d+", n))
        raise CompileError(
            f"TensorRT for RTX {trt.__version__} has no target for compute capability {cc or '(none given)'}"
            f"{_sku(cc)}; it has {', '.join(targets)}; use the compiler 'tensorrt' on a worker that has this GPU"
        )

    def configure(config: Any) -> None:
        config.num_compute_capabilities = 1
        config.set_compute_capability(target, 0)

    return _build(trt, order, configure)


def compile_with_tensorrt(order: CompileOrder) -> Engine:
    """For the GPU of this machine, which must have the order's compute capability. Raises CompileError."""
    try:
        trt = importlib.import_module("tensorrt")
    except ImportError as error:
        raise CompileError(
            f"TensorRT is not installed here ({error}); on a worker with the GPU, install the extra 'tensorrt'"
        ) from error
    have = _current_compute_capability()
    if have != order.compute_capability:
        raise CompileError(
            f"this needs a worker with compute capability {order.compute_capability}{_sku(order.compute_capability)}; "
            f"the GPU here has {have}"
        )
    return _build(trt, order, lambda config: None)


def load_rtx() -> Any:
    """The bindings of TensorRT for RTX, as the server imports them. Raises CompileError."""
    try:
        return import_tensorrt_rtx()
    except BackendError as error:
        raise CompileError(f"{error}, or install the extra 'tensorrt-rtx'") from error


def _build(trt: ModuleType, order: CompileOrder, configure: Any) -> Engine:
    logger = _logger(trt)
    builder = trt.Builder(logger)
    flag = getattr(trt.NetworkDefinitionCreationFlag, "STRONGLY_TYPED", None)
    network = builder.create_network(0 if flag is None else 1 << int(flag))
    network.name = "enginery"  # the automatic name holds a counter, and would be in the bytes
    parser = trt.OnnxParser(network, logger)
    # By its path only where it must be: weights beside a graph are found from there.
    by_path = external_data.is_beside_data(order.source)
    if not (parser.parse_from_file(str(order.source)) if by_path else parser.parse(order.source.read_bytes())):
        told = [str(parser.get_error(i).desc()) for i in range(parser.num_errors)]
        raise CompileError(_refusal(trt, order, "cannot read the ONNX", told or logger.errors))
    config = builder.create_builder_config()
    configure(config)
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED  # the gate reads each layer's format
    profile = builder.create_optimization_profile()
    for i in range(network.num_inputs):
        tensor = network.get_input(i)
        given = (order.shapes.min, order.shapes.opt, order.shapes.max)
        profile.set_shape(tensor.name, *(_shape(tuple(tensor.shape), shape) for shape in given))
    config.add_optimization_profile(profile)
    plan = builder.build_serialized_network(network, config)
    if plan is None:
        raise CompileError(_refusal(trt, order, "built nothing", logger.errors))
    return Engine(
        file_name="engine.plan",
        data=bytes(plan),
        facts={
            "compiler_version": str(trt.__version__),
            "compute_capability": order.compute_capability,
            "num_layers": network.num_layers,
            "warnings": logger.warnings,
        },
    )


def _shape(dims: tuple[int, ...], given: tuple[int, int]) -> tuple[int, ...]:
    """An input's dims, -1 where they vary -> its shape for a (B, T): the first axis is B, another that varies is T."""
    return tuple(given[min(axis, 1)] if dim < 0 else dim for axis, dim in enumerate(dims))


def _logger(trt: ModuleType) -> Any:
    """TensorRT reports errors to its logger only: keep them."""

    class Logger(trt.ILogger):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            super().__init__()
            self.errors: list[str] = []
            self.warnings: list[str] = []

        def log(self, severity: Any, message: str) -> None:
            if severity in (trt.ILogger.Severity.ERROR, trt.ILogger.Severity.INTERNAL_ERROR):
                self.errors.append(message)
            elif severity == trt.ILogger.Severity.WARNING and "Int64 binding" not in message:
                self.warnings.append(message)

    return Logger()


def _refusal(trt: ModuleType, order: CompileOrder, what: str, told: list[str]) -> str:
    cc = order.compute_capability
    lines = [f"TensorRT {trt.__version__} {what} for compute capability {cc}{_sku(cc)}, {order.precision}:"]
    lines += [f"  {message}" for message in told or ["(it gave no reason)"]]
    remedy = "exclude this row in the matrix, or build it in another precision"
    for words, better in REMEDIES.items():
        if any(words in message for message in told):
            remedy = better
    return "\n".join([*lines, f"  {remedy}"])


def _sku(compute_capability: str | None) -> str:
    names = SKUS.get(compute_capability or "")
    return f" ({names})" if names else ""


def _current_compute_capability() -> str:
    """Of the first GPU here, "9.0". Raises CompileError where there is none."""
    try:
        import pynvml

        pynvml.nvmlInit()
        major, minor = pynvml.nvmlDeviceGetCudaComputeCapability(pynvml.nvmlDeviceGetHandleByIndex(0))
    except Exception as error:  # no module, no driver, no GPU: all mean the same here
        raise CompileError(f"TensorRT builds on the GPU it builds for, and there is none here ({error})") from error
    return f"{major}.{minor}"
