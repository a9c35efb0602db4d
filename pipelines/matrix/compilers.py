"""The compilers that a SKU may name: one row for each, with what executes its engines and what decides their bytes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, kw_only=True)
class CompilerSpec:
    """What the factory must know of a compiler without importing it. Its code is a module of `pipelines.compile`."""

    hardware: Literal["gpu", "cpu"]
    backend: str  # what executes its engine, as `serving.backends` names it
    model_type: str  # NIM's word for that
    file_suffix: str  # of its engine: ".plan"
    distributions: tuple[str, ...]  # whose versions decide an engine's bytes
    bound_to: str | None = None  # the distribution whose version an engine runs with; None: any
    needs_gpu: bool = False  # it tunes on the very GPU, so the SKU's rows need a worker that has it
    extra: str  # of the distribution enginery, which installs it


COMPILERS: Mapping[str, CompilerSpec] = {
    "tensorrt-rtx": CompilerSpec(
        hardware="gpu",
        backend="tensorrt-rtx",
        model_type="tensorrt",
        file_suffix=".plan",
        distributions=("tensorrt-rtx-cu13-bindings", "onnxruntime-ep-nv-tensorrt-rtx-cu13"),
        bound_to="tensorrt-rtx-cu13-bindings",
        extra="tensorrt-rtx",
    ),
    "tensorrt": CompilerSpec(
        hardware="gpu",
        backend="tensorrt",
        model_type="tensorrt",
        file_suffix=".plan",
        distributions=("tensorrt",),
        bound_to="tensorrt",
        needs_gpu=True,
        extra="tensorrt",
    ),
    "openvino": CompilerSpec(
        hardware="cpu",
        backend="openvino",
        model_type="openvino",
        file_suffix=".blob",
        distributions=("openvino",),
        bound_to="openvino",
        extra="openvino",
    ),
    "onnx": CompilerSpec(
        hardware="cpu",
        backend="onnxruntime",
        model_type="onnx",
        file_suffix=".onnx",
        distributions=(),
        extra="factory",
    ),
}


def of_hardware(hardware: str) -> tuple[str, ...]:
    return tuple(name for name, spec in COMPILERS.items() if spec.hardware == hardware)
