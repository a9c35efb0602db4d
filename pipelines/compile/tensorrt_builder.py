"""Build an engine with either flavour of TensorRT, which share an API: the module is a parameter."""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType
from typing import Any

from pipelines.compile.base import CompileOrder, Engine
from pipelines.errors import CompileError
from pipelines.onnx_graph import external_data

# What a person calls a compute capability, for messages.
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


def build(trt: ModuleType, order: CompileOrder, configure: Callable[[Any], None]) -> Engine:
    """The order's engine. configure: what the flavour sets on the builder's config. Raises CompileError."""
    logger = _logger(trt)
    builder = trt.Builder(logger)
    flag = getattr(trt.NetworkDefinitionCreationFlag, "STRONGLY_TYPED", None)
    network = builder.create_network(0 if flag is None else 1 << int(flag))
    network.name = "enginery"  # the automatic name holds a counter, and would be in the bytes
    parser = trt.OnnxParser(network, logger)
    # By its path only where it must be: external data is found from there.
    by_path = external_data.has_external_data(order.source)
    if not (parser.parse_from_file(str(order.source)) if by_path else parser.parse(order.source.read_bytes())):
        errors = [str(parser.get_error(i).desc()) for i in range(parser.num_errors)]
        raise CompileError(_refusal(trt, order, "cannot read the ONNX", errors or logger.errors))
    config = builder.create_builder_config()
    configure(config)
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED  # the gate reads each layer's format
    profile = builder.create_optimization_profile()
    for i in range(network.num_inputs):
        tensor = network.get_input(i)
        shapes = (order.shapes.min, order.shapes.opt, order.shapes.max)
        profile.set_shape(tensor.name, *(_shape(tuple(tensor.shape), shape) for shape in shapes))
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


def _shape(dims: tuple[int, ...], shape: tuple[int, int]) -> tuple[int, ...]:
    """An input's dims, -1 where they vary -> its shape for a (B, T): the first axis is B, another that varies is T."""
    return tuple(shape[min(axis, 1)] if dim < 0 else dim for axis, dim in enumerate(dims))


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


def _refusal(trt: ModuleType, order: CompileOrder, what: str, errors: list[str]) -> str:
    cc = order.compute_capability
    lines = [f"TensorRT {trt.__version__} {what} for compute capability {cc}{skus_of(cc)}, {order.precision}:"]
    lines += [f"  {message}" for message in errors or ["(it gave no reason)"]]
    remedy = "exclude this row in the matrix, or build it in another precision"
    for words, better in REMEDIES.items():
        if any(words in message for message in errors):
            remedy = better
    return "\n".join([*lines, f"  {remedy}"])


def skus_of(compute_capability: str | None) -> str:
    """The GPUs of a compute capability as a message names them: " (T4)"."""
    names = SKUS.get(compute_capability or "")
    return f" ({names})" if names else ""
