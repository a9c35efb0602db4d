"""The values that factory and server share: precisions, shapes, profiles, machines. They only hold."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum


class Precision(StrEnum):
    """The number format of an engine, narrowest last within its width."""

    FP32 = "fp32"
    FP16 = "fp16"
    BF16 = "bf16"
    FP8 = "fp8"
    INT8 = "int8"

    @property
    def bits(self) -> int:
        return {"fp32": 32, "fp16": 16, "bf16": 16, "fp8": 8, "int8": 8}[self.value]


@dataclass(frozen=True, kw_only=True)
class ShapeRange:
    """The (B, T) shapes an engine accepts, and the one it was tuned for."""

    min: tuple[int, int]  # (1, 1)
    opt: tuple[int, int]  # (16, 128)
    max: tuple[int, int]  # (64, 512)


@dataclass(frozen=True, kw_only=True)
class ProfileFile:
    """One file of a profile: where it comes from and what its bytes must hash to."""

    path: str  # its name in the workspace: "engine.plan"
    uri: str  # relative to the repository ("blobs/blake3/ab…") or absolute ("s3://…")
    checksum: str  # "blake3:" + 64 hex digits
    size_bytes: int


@dataclass(frozen=True, kw_only=True)
class Profile:
    """A row that was built and passed its gate: what may ship."""

    id: str  # 64 hex digits: BLAKE3 of the tags, NIM's algorithm
    name: str  # the row: "all-minilm-l6-v2__l40s__fp8__tp1"
    tags: Mapping[str, str]
    files: tuple[ProfileFile, ...]
    proof_min_cosine: float  # what the boot proof must reach against the golden outputs
    digest: str = ""  # "sha256:" over tags and files: pins the bytes, which the id does not

    @property
    def precision(self) -> Precision:
        return Precision(self.tags["precision"])

    @property
    def backend(self) -> str:
        """What executes it: "tensorrt-rtx", "tensorrt", "openvino" or "onnxruntime"."""
        return self.tags["backend"]

    @property
    def tp(self) -> int:
        return int(self.tags.get("tp", "1"))

    def file(self, path: str) -> ProfileFile:
        return next(f for f in self.files if f.path == path)


@dataclass(frozen=True, kw_only=True)
class Gpu:
    """One GPU as NVML reports it."""

    index: int
    name: str  # "NVIDIA L40S"
    pci_device: str  # "26b9", lower-case hexadecimal
    compute_capability: str  # "8.9"
    memory_total_bytes: int
    memory_free_bytes: int
    utilization_percent: int = 0


@dataclass(frozen=True, kw_only=True)
class Machine:
    """What the server has found: everything that selection may ask about."""

    cpu_arch: str  # "x86_64"
    cpu_features: frozenset[str]  # flags as Linux names them: "avx2", "avx512_bf16", "amx_bf16"
    num_cpus: int  # usable by this process (affinity and cgroup quota applied)
    memory_bytes: int
    gpus: tuple[Gpu, ...] = ()
    driver_version: str | None = None  # "580.65.06"
    runtimes: Mapping[str, str] = field(default_factory=dict)  # backend -> version importable here
    notes: tuple[str, ...] = ()  # why something could not be detected: "NVML: driver not loaded"
