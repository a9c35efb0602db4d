"""How ONNX larger than one file may be keeps its weights: the graph in X, heavy tensors in X.data, read one by one.

A *light* graph holds no heavy tensor, it names where each lies: a graph of gigabytes is a few megabytes to work on.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipelines.errors import ExportError
from pipelines.onnx_graph import streaming

SUFFIX = ".data"  # image.onnx and image.onnx.data
HEAVY_BYTES = 2**16  # smaller tensors stay in the graph: shapes, axes, norms, all that a pass over it looks into
LARGE_BYTES = 2**29  # of a whole graph: from here on it is worked on light, whether its file is or not
ALIGNMENT = 4096  # of a tensor in the data, so that a runtime can map it

Content = Callable[[Any], bytes]  # a heavy onnx.TensorProto -> its bytes


def is_external(tensor: Any) -> bool:
    return bool(tensor.data_location == tensor.EXTERNAL)


def is_light(model: Any) -> bool:
    return any(is_external(tensor) for tensor in model.graph.initializer)


def size_of(model: Any) -> int:
    """Bytes of the graph with all its tensors."""
    return int(model.ByteSize()) + sum(reference(t)[2] for t in model.graph.initializer if is_external(t))


def reference(tensor: Any) -> tuple[str, int, int]:
    """Where a tensor lies that is not in the graph: file, offset, length."""
    found = {entry.key: entry.value for entry in tensor.external_data}
    return found["location"], int(found.get("offset", 0)), int(found["length"])


def refer(tensor: Any, location: str, offset: int, length: int) -> None:
    """Have a tensor lie elsewhere. In place."""
    for name in ("raw_data", "float_data", "int32_data", "int64_data", "external_data"):
        tensor.ClearField(name)
    tensor.data_location = tensor.EXTERNAL
    for key, value in (("location", location), ("offset", offset), ("length", length)):
        entry = tensor.external_data.add()
        entry.key, entry.value = key, str(value)


def embed(tensor: Any, data: bytes) -> None:
    """Have a tensor lie in the graph. In place."""
    tensor.ClearField("external_data")
    tensor.ClearField("data_location")
    tensor.raw_data = data


def stored(tensor: Any, folder: Path) -> bytes:
    """A tensor's bytes, from the graph or from its file in the folder. Raises ExportError if that is too short."""
    from onnx import numpy_helper

    if not is_external(tensor):
        return bytes(tensor.raw_data) or numpy_helper.to_array(tensor).tobytes()
    location, offset, length = reference(tensor)
    with (folder / location).open("rb") as file:
        file.seek(offset)
        found = file.read(length)
    if len(found) != length:
        raise ExportError(f"{location} ends in the middle of {tensor.name}; it belongs to another graph")
    return found


def array(tensor: Any, folder: Path) -> NDArray[Any]:
    """A tensor's values, wherever they lie."""
    return np.frombuffer(stored(tensor, folder), dtype_of(tensor.data_type)).reshape(tuple(tensor.dims))


def dtype_of(data_type: int) -> np.dtype[Any]:
    """NumPy's type for an onnx.TensorProto.DataType."""
    from onnx import helper

    found: np.dtype[Any] = np.dtype(helper.tensor_dtype_to_np_dtype(data_type))
    return found


def read(path: Path) -> Any:
    """The `onnx.ModelProto` of a file, light if the file is; what lies elsewhere is not opened."""
    return parse(path.read_bytes())


def parse(data: bytes) -> Any:
    import onnx

    return onnx.load_model_from_string(data)


def read_light(path: Path, scratch: Path) -> tuple[Any, Path]:
    """As a light graph in any case, and the folder that its heavy tensors lie in: the file's own, or scratch."""
    model = read_in_place(path)
    inside = [t for t in model.graph.initializer if is_external(t) and reference(t)[0] == path.name]
    if is_light(model) and not inside:
        return model, path.parent
    write(model, scratch / "light.onnx", path.parent, beside=True)
    return model, scratch


def read_in_place(path: Path) -> Any:
    """As a light graph whose heavy tensors lie where they are: in the data, or in the file itself, at any place."""
    return streaming.read(path, HEAVY_BYTES, refer)


def write(model: Any, path: Path, folder: Path, *, beside: bool, content: Content | None = None) -> list[Path]:
    """Write a graph with its heavy tensors beside it (then the model changes), or all in one file. Returns the files.

    folder: what a light graph's references are relative to. content: what else than the stored bytes to write.
    """
    content = content or (lambda tensor: stored(tensor, folder))
    if not beside and not is_light(model):
        path.write_bytes(model.SerializeToString(deterministic=True))
        return [path]
    if not beside:
        with path.open("wb") as whole:
            streaming.write(model, whole, lambda data_type: dtype_of(data_type).itemsize, content)
        return [path]
    target = path.with_name(path.name + SUFFIX)
    with target.open("wb") as file:
        for tensor in model.graph.initializer:
            if is_external(tensor) or len(tensor.raw_data) >= HEAVY_BYTES:
                data = content(tensor)
                file.write(b"\0" * (-file.tell() % ALIGNMENT))
                refer(tensor, target.name, file.tell(), len(data))
                file.write(data)
    path.write_bytes(model.SerializeToString(deterministic=True))
    return [path, target]


def at_hand(inputs: Mapping[str, Path], name: str, scratch: Path) -> Path:
    """A stage's input as a file to open by its path: where it has data, in a folder with that under its right name.

    Linked, not copied: nothing that is opened here is written to.
    """
    path, data = inputs[name], inputs.get(name + SUFFIX)
    if data is None:
        return path
    locations = {reference(t)[0] for t in read(path).graph.initializer if is_external(t)}
    if len(locations) != 1 or any(Path(location).name != location for location in locations):
        raise ExportError(f"{name} keeps its weights in {', '.join(sorted(locations)) or 'itself'}, not in one file")
    folder = scratch / (name + SUFFIX)
    folder.mkdir()
    _link(path, folder / "model.onnx")
    _link(data, folder / locations.pop())
    return folder / "model.onnx"


def lightened(path: Path, scratch: Path) -> Path:
    """An ONNX that is at hand, beside its data if it is large: ONNX Runtime maps that, and holds a whole file twice.

    A quarter of a large model's bytes are enough: in fp8 it has no more, and it is judged in fp32.
    """
    if is_beside_data(path) or path.stat().st_size <= LARGE_BYTES // 4:
        return path
    folder = Path(tempfile.mkdtemp(dir=scratch, suffix=SUFFIX))
    return write(read_in_place(path), folder / "model.onnx", path.parent, beside=True)[0]


def is_beside_data(path: Path) -> bool:
    """Whether at_hand put this file beside its data; asked without reading gigabytes."""
    return path.parent.name.endswith(SUFFIX)


def size_bytes(inputs: Mapping[str, Path], name: str) -> int:
    """Of a stage's input, with its data."""
    return sum(inputs[part].stat().st_size for part in (name, name + SUFFIX) if part in inputs)


def _link(source: Path, target: Path) -> None:
    try:
        os.link(source, target)
    except OSError:  # another file system, or one that has no links
        shutil.copyfile(source, target)
