"""ONNX external data: the graph in X, its large tensors in X.data, read and written one by one.

An *externalized* graph names the file, offset and length of each large tensor instead of holding its bytes: the graph
of a model of gigabytes is a few megabytes to work on.
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
MIN_EXTERNAL_BYTES = 2**16  # smaller tensors stay in the graph: shapes, axes, norms, whatever a pass looks into
LARGE_BYTES = 2**29  # of a whole model: from here on passes work on the externalized graph, whatever its file is
ALIGNMENT = 4096  # of a tensor in the data, so that a runtime can map it

Content = Callable[[Any], bytes]  # an external onnx.TensorProto -> the bytes to write for it


def is_external(tensor: Any) -> bool:
    return bool(tensor.data_location == tensor.EXTERNAL)


def is_externalized(model: Any) -> bool:
    return any(is_external(tensor) for tensor in model.graph.initializer)


def size_of(model: Any) -> int:
    """Bytes of the graph with all its tensors."""
    return int(model.ByteSize()) + sum(location_of(t)[2] for t in model.graph.initializer if is_external(t))


def location_of(tensor: Any) -> tuple[str, int, int]:
    """File, offset and length of an external tensor."""
    entries = {entry.key: entry.value for entry in tensor.external_data}
    return entries["location"], int(entries.get("offset", 0)), int(entries["length"])


def externalize(tensor: Any, location: str, offset: int, length: int) -> None:
    """Replace a tensor's bytes by their location. In place."""
    for name in ("raw_data", "float_data", "int32_data", "int64_data", "external_data"):
        tensor.ClearField(name)
    tensor.data_location = tensor.EXTERNAL
    for key, value in (("location", location), ("offset", offset), ("length", length)):
        entry = tensor.external_data.add()
        entry.key, entry.value = key, str(value)


def inline(tensor: Any, data: bytes) -> None:
    """Replace a tensor's location by its bytes. In place."""
    tensor.ClearField("external_data")
    tensor.ClearField("data_location")
    tensor.raw_data = data


def tensor_bytes(tensor: Any, folder: Path) -> bytes:
    """A tensor's bytes, from the graph or from its file in the folder. Raises ExportError if that file is too short."""
    from onnx import numpy_helper

    if not is_external(tensor):
        return bytes(tensor.raw_data) or numpy_helper.to_array(tensor).tobytes()
    location, offset, length = location_of(tensor)
    with (folder / location).open("rb") as file:
        file.seek(offset)
        data = file.read(length)
    if len(data) != length:
        raise ExportError(f"{location} ends in the middle of {tensor.name}; it belongs to another graph")
    return data


def tensor_array(tensor: Any, folder: Path) -> NDArray[Any]:
    """A tensor's values, from the graph or from its file in the folder."""
    return np.frombuffer(tensor_bytes(tensor, folder), dtype_of(tensor.data_type)).reshape(tuple(tensor.dims))


def dtype_of(data_type: int) -> np.dtype[Any]:
    """NumPy's type for an onnx.TensorProto.DataType."""
    from onnx import helper

    dtype: np.dtype[Any] = np.dtype(helper.tensor_dtype_to_np_dtype(data_type))
    return dtype


def read(path: Path) -> Any:
    """The `onnx.ModelProto` of a file. Its external data is not opened."""
    return parse(path.read_bytes())


def parse(data: bytes) -> Any:
    import onnx

    return onnx.load_model_from_string(data)


def read_externalized(path: Path, scratch: Path) -> tuple[Any, Path]:
    """A file as an externalized graph, and the folder its locations are relative to: the file's own, or scratch."""
    model = read_in_place(path)
    inside = [t for t in model.graph.initializer if is_external(t) and location_of(t)[0] == path.name]
    if is_externalized(model) and not inside:
        return model, path.parent
    write(model, scratch / "externalized.onnx", path.parent, external=True)
    return model, scratch


def read_in_place(path: Path) -> Any:
    """A file as an externalized graph that locates each large tensor where it lies: in the data, or in the file itself.

    In the file itself a tensor has no alignment.
    """
    return streaming.read(path, MIN_EXTERNAL_BYTES, externalize)


def write(model: Any, path: Path, folder: Path, *, external: bool, content: Content | None = None) -> list[Path]:
    """Write a model with external data (then its locations change), or all in one file. Returns the files.

    folder: what the model's locations are relative to. content: the bytes to write, where not those of the location.
    """
    content = content or (lambda tensor: tensor_bytes(tensor, folder))
    if not external and not is_externalized(model):
        path.write_bytes(model.SerializeToString(deterministic=True))
        return [path]
    if not external:
        with path.open("wb") as whole:
            streaming.write(model, whole, lambda data_type: dtype_of(data_type).itemsize, content)
        return [path]
    target = path.with_name(path.name + SUFFIX)
    with target.open("wb") as file:
        for tensor in model.graph.initializer:
            if is_external(tensor) or len(tensor.raw_data) >= MIN_EXTERNAL_BYTES:
                data = content(tensor)
                file.write(b"\0" * (-file.tell() % ALIGNMENT))
                externalize(tensor, target.name, file.tell(), len(data))
                file.write(data)
    path.write_bytes(model.SerializeToString(deterministic=True))
    return [path, target]


def stage_input(inputs: Mapping[str, Path], name: str, scratch: Path) -> Path:
    """A stage's input as a file that libraries can open: with its external data under the name that the graph gives it.

    Linked, not copied: nothing writes to what is opened here.
    """
    path, data = inputs[name], inputs.get(name + SUFFIX)
    if data is None:
        return path
    locations = {location_of(t)[0] for t in read(path).graph.initializer if is_external(t)}
    if len(locations) != 1 or any(Path(location).name != location for location in locations):
        raise ExportError(f"{name} keeps its weights in {', '.join(sorted(locations)) or 'itself'}, not in one file")
    folder = scratch / (name + SUFFIX)
    folder.mkdir()
    _link(path, folder / "model.onnx")
    _link(data, folder / locations.pop())
    return folder / "model.onnx"


def externalize_file(path: Path, scratch: Path) -> Path:
    """A stage's input, with external data if it is large: ONNX Runtime maps that, and holds a whole file twice.

    A quarter of a large model's bytes count as large: an fp8 file has no more, and is judged in fp32.
    """
    if has_external_data(path) or path.stat().st_size <= LARGE_BYTES // 4:
        return path
    folder = Path(tempfile.mkdtemp(dir=scratch, suffix=SUFFIX))
    return write(read_in_place(path), folder / "model.onnx", path.parent, external=True)[0]


def has_external_data(path: Path) -> bool:
    """Whether a path that `stage_input` gave has external data; tells it by the folder's name, without reading."""
    return path.parent.name.endswith(SUFFIX)


def size_bytes(inputs: Mapping[str, Path], name: str) -> int:
    """Of a stage's input, with its external data."""
    return sum(inputs[part].stat().st_size for part in (name, name + SUFFIX) if part in inputs)


def _link(source: Path, target: Path) -> None:
    try:
        os.link(source, target)
    except OSError:  # another file system, or one that has no links
        shutil.copyfile(source, target)
