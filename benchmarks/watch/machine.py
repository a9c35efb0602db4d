"""The machine and the versions that a measurement was made with: what stands in a report's header."""

from __future__ import annotations

import os
import platform
import re
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path

PACKAGES = ("enginery", "openvino", "onnxruntime", "numpy", "tokenizers", "uvicorn", "uvloop", "httptools", "orjson")
# Instruction sets that decide how fast a transformer runs on a CPU.
FLAGS = ("avx2", "avx512f", "avx512_vnni", "avx512_bf16", "amx_bf16", "amx_int8")


def describe(cpuinfo: Path = Path("/proc/cpuinfo"), meminfo: Path = Path("/proc/meminfo")) -> dict[str, str]:
    """Words for a header."""
    cpu, memory = cpuinfo.read_text(), meminfo.read_text()
    name = re.search(r"^model name\s*: (.+)$", cpu, re.MULTILINE)
    flags = re.search(r"^flags\s*: (.+)$", cpu, re.MULTILINE)
    has = set(flags[1].split()) if flags else set()
    kib = re.search(r"^MemTotal:\s+(\d+) kB", memory, re.MULTILINE)
    return {
        "CPU": name[1] if name else platform.processor() or "unknown",
        "cores": str(len(os.sched_getaffinity(0))),
        "instructions": " ".join(flag for flag in FLAGS if flag in has) or "none of those that matter here",
        "memory": f"{int(kib[1]) / 2**20:.0f} GiB" if kib else "unknown",
        "system": f"{platform.system()} {platform.release()}, Python {platform.python_version()}",
    }


def versions(packages: Sequence[str] = PACKAGES) -> dict[str, str]:
    """Package -> version, of those that are installed."""
    installed = {}
    for package in packages:
        try:
            installed[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return installed
