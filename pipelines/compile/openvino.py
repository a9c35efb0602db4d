"""Compile with OpenVINO for a CPU's instruction set, which may be an older one than this machine's."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pipelines.compile.base import CompileOrder, Engine
from pipelines.errors import CompileError
from serving.backends.openvino import HINTS, hint_of, import_openvino
from serving.contract.profile import Precision
from serving.errors import BackendError

FP16_HINT = "f16"  # the server has no machine to run it on yet
REALIZED = {
    Precision.FP32: ("f32",),
    Precision.BF16: ("bf16",),
    Precision.FP16: ("f16",),
    Precision.INT8: ("i8", "u8"),
}
PRODUCTS = ("FullyConnected", "MatMul", "ScaledDotProductAttention", "ScaledAttn", "Convolution")
# oneDNN's names, and the flag of /proc/cpuinfo that a machine must have to compile for them.
ISA_FLAGS = {
    "SSE41": "sse4_1",
    "AVX2": "avx2",
    "AVX2_VNNI": "avx_vnni",
    "AVX512_CORE": "avx512bw",
    "AVX512_CORE_VNNI": "avx512_vnni",
    "AVX512_CORE_BF16": "avx512_bf16",
    "AVX512_CORE_FP16": "avx512_fp16",
    "AVX512_CORE_AMX": "amx_bf16",
    "AVX512_CORE_AMX_FP16": "amx_fp16",
}
LEAST_ISA = {Precision.BF16: "AVX512_CORE_BF16", Precision.FP16: "AVX512_CORE_FP16"}


def compile_engine(order: CompileOrder) -> Engine:
    """The order's ONNX -> an exported model for the order's instruction set. Raises CompileError."""
    hint = FP16_HINT if order.precision is Precision.FP16 else hint_of(order.precision, order.cpu_isa)
    if hint is None:
        raise CompileError(f"OpenVINO runs no {order.precision} on a CPU; use {', '.join(HINTS)}")
    ov = _load(order.cpu_isa)
    config = {"INFERENCE_PRECISION_HINT": hint, "PERFORMANCE_HINT": "LATENCY"}
    try:
        with _one_cpu():
            core = ov.Core()
            compiled = core.compile_model(core.read_model(order.source), "CPU", config)
            data = compiled.export_model().getvalue()
    except RuntimeError as error:
        raise CompileError(_refusal(order, str(error))) from error
    realized = _realized(compiled)
    formats = REALIZED[order.precision]
    if not any(realized.get(name) for name in formats):
        reason = f"no matrix product came out in {' or '.join(formats)}, only {dict(realized)}"
        raise CompileError(_refusal(order, reason))
    return Engine(
        file_name="engine.blob",
        data=data,
        facts={
            "compiler_version": ov.__version__,
            "cpu_isa": order.cpu_isa,
            "num_products_by_format": dict(sorted(realized.items())),
        },
    )


def _load(cpu_isa: str | None) -> Any:
    """Import OpenVINO with the instruction set bounded, which oneDNN reads once in a process's life."""
    if cpu_isa is not None:
        flag = ISA_FLAGS.get(cpu_isa)
        if flag is None:
            raise CompileError(f"cpu_isa '{cpu_isa}' is not a name of oneDNN's; one of {', '.join(ISA_FLAGS)} is")
        if flag not in _cpu_flags(Path("/proc/cpuinfo")):
            raise CompileError(f"cpu_isa {cpu_isa}: this machine's CPU has no {flag}; this needs a worker that has it")
    try:
        return import_openvino(cpu_isa)
    except BackendError as error:
        raise CompileError(f"{error}; compile in a fresh process, with the extra 'openvino' installed") from error


@contextmanager
def _one_cpu() -> Iterator[None]:
    """See one CPU only: OpenVINO writes the number it sees into the blob (MODEL_PREFER_THREADS_LATENCY).

    The number is not used at import, where the server says how many threads it wants, but it is in the bytes.
    """
    if not hasattr(os, "sched_setaffinity"):
        yield
        return
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(before)})
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def _refusal(order: CompileOrder, message: str) -> str:
    reason = message.strip().splitlines()[-1]  # the lines before name places in OpenVINO's own sources
    remedy = "exclude this row in the matrix, or build it in fp32"
    if order.precision in LEAST_ISA:
        remedy = f"{order.precision} needs {LEAST_ISA[order.precision]} or newer; use fp32 or int8 for this SKU"
    return f"OpenVINO refused {order.precision} for {order.cpu_isa or 'this CPU'}: {reason}; {remedy}"


def _realized(compiled: Any) -> Counter[str]:
    """The format each matrix product really runs in, counted: {"bf16": 48}."""
    formats: Counter[str] = Counter()
    for op in compiled.get_runtime_model().get_ops():
        info = op.get_rt_info()
        if _text(info["layerType"]) in PRODUCTS:
            formats[_text(info["runtimePrecision"])] += 1
    return formats


def _text(value: Any) -> str:
    return str(getattr(value, "value", value))


def _cpu_flags(cpuinfo: Path) -> frozenset[str]:
    lines = cpuinfo.read_text().splitlines() if cpuinfo.is_file() else []
    return frozenset(next((line.partition(":")[2] for line in lines if line.startswith("flags")), "").split())
