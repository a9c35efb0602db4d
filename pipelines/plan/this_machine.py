"""What this machine can build: the server's view of the hardware, in the matrix's words."""

from __future__ import annotations

from pipelines.matrix.values import Worker
from serving.choice import hardware

# The runtimes that are compilers too, under the name the matrix gives them.
COMPILERS = {"onnxruntime": "onnx", "openvino": "openvino", "tensorrt": "tensorrt", "tensorrt-rtx": "tensorrt-rtx"}


def here() -> Worker:
    machine = hardware.detect()
    return Worker(
        cpu_arch=machine.cpu_arch,
        cpu_features=machine.cpu_features,
        compilers=frozenset(COMPILERS[name] for name in machine.runtimes),
        gpu_pci_ids=tuple(gpu.pci_device for gpu in machine.gpus),
    )
