"""Which backend loads which engine: the table, and nothing that imports a runtime."""

from __future__ import annotations

from collections.abc import Callable

from serving.backends import onnxruntime, openvino, tensorrt
from serving.backends.base import Backend, LoadOptions
from serving.errors import BackendError

LOADERS: dict[str, Callable[[bytes, LoadOptions], Backend]] = {
    "onnxruntime": onnxruntime.load,
    "openvino": openvino.load,
    "tensorrt": tensorrt.load_tensorrt,
    "tensorrt-rtx": tensorrt.load_tensorrt_rtx,
}


def load(backend: str, engine: bytes, options: LoadOptions) -> Backend:
    """Engine bytes, already verified -> an engine ready to run. Raises BackendError."""
    loader = LOADERS.get(backend)
    if loader is None:
        raise BackendError(f"backend {backend!r} is unknown here; this server has {', '.join(LOADERS)}")
    return loader(engine, options)
