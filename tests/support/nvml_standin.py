"""A small real library in the place of NVIDIA's libnvidia-ml.so.1, for processes that load the real nvidia-ml-py.

Its source, nvml_standin.c, says what the environment variables NVML_STANDIN… mean.
"""

from __future__ import annotations

import atexit
import os
import shutil
import subprocess
import tempfile
from functools import cache
from pathlib import Path

import pytest

COMPILER = shutil.which("cc")
needs_compiler = pytest.mark.skipif(COMPILER is None, reason="needs a C compiler for the stand-in of libnvidia-ml")
REPOSITORY = Path(__file__).parents[2]

L40S = "NVIDIA L40S,26b9,8,9,46068,45000"
L4 = "NVIDIA L4,27b8,8,9,23034,22000"
H100 = "NVIDIA H100 80GB HBM3,2330,9,0,81559,81000"
GB10 = "NVIDIA GB10,2e12,12,1,0,0,fail=nvmlDeviceGetMemoryInfo:3"  # shares the system's memory


@cache
def folder() -> Path:
    """Where the library is; built once in each test process."""
    built = Path(tempfile.mkdtemp(prefix="nvml-standin-"))
    atexit.register(shutil.rmtree, built, ignore_errors=True)
    source = Path(__file__).with_suffix(".c")
    command = [str(COMPILER), "-shared", "-fPIC", "-Wall", "-Wextra", "-Werror"]
    subprocess.run([*command, "-o", str(built / "libnvidia-ml.so.1"), str(source)], check=True, timeout=60)
    return built


def environ(gpus: str | None, **more: str) -> dict[str, str]:
    """This process's environment, with the stand-in and its GPUs; None: no driver is loaded."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("NIM_", "ENGINERY_", "NVML_"))}
    kept.pop("CUDA_VISIBLE_DEVICES", None)
    given = {} if gpus is None else {"NVML_STANDIN": gpus}
    return {**kept, "LD_LIBRARY_PATH": str(folder()), "PYTHONPATH": str(REPOSITORY), **given, **more}
