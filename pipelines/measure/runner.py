"""Run a loaded engine over many items as the gate needs them: in good batches, on every core, in the order given."""

from __future__ import annotations

import filecmp
import importlib.metadata
import os
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipelines.errors import GateError
from pipelines.onnx_graph import external_data
from pipelines.onnx_graph.emulate import dequantize_weights, emulate
from pipelines.onnx_graph.precision import realized_precision
from serving.backends import load, onnxruntime
from serving.backends.base import Backend, LoadOptions
from serving.contract.profile import Precision
from serving.errors import BackendError
from serving.tasks.base import ONLY, Item, Tower, suffixed

# A batch of items of like length, so that little is padded; more tokens at once only cost memory.
MAX_BATCH_ITEMS, MAX_BATCH_COST = 32, 4096

Items = Sequence[Item]
Outputs = NDArray[np.float32]  # (N, D)


@dataclass(frozen=True, kw_only=True)
class Runner:
    """A loaded engine, the tower it belongs to, and how many batches it may run at once."""

    backend: Backend
    tower: Tower
    num_workers: int

    def outputs(self, items: Items) -> Outputs:
        """N items -> (N, D), in the order given. Raises GateError for figures that are not finite."""
        outputs = np.zeros((len(items), self.tower.dimension), dtype=np.float32)
        groups = list(batches([self.tower.cost(item) for item in items], self.tower.max_batch))
        with ThreadPoolExecutor(max_workers=self.num_workers) as pool:
            of_groups = pool.map(lambda group: self.run([items[i] for i in group]), groups)
            for group, of_group in zip(groups, of_groups, strict=True):
                outputs[group] = of_group
        return outputs

    def run(self, items: Items) -> Outputs:
        """One batch. Raises GateError."""
        try:
            outputs = self.backend.infer(self.tower.collate(items))
        except BackendError as error:
            raise GateError(f"the engine cannot run a batch of {len(items)}: {error}") from error
        if not np.isfinite(outputs).all():
            raise GateError("the engine gave figures that are not finite; it cannot be judged")
        return outputs

    def vectors(self, items: Items) -> Outputs:
        """As outputs(), each divided by its norm."""
        return unit(self.outputs(items))


def unit(vectors: Outputs) -> Outputs:
    """(N, D) -> the same, each of length 1. Raises GateError for one that is zero."""
    norms = np.linalg.norm(vectors, axis=1, keepdims=True)
    if (norms == 0).any():
        raise GateError("the engine gave vectors that are zero; it cannot be judged")
    return np.asarray(vectors / norms, dtype=np.float32)


def batches(costs: Sequence[int], max_batch: int) -> Iterator[list[int]]:
    """Indices grouped by like cost, within the engine's batch; dearest first, so that the last batch is short."""
    most = min(MAX_BATCH_ITEMS, max_batch)
    group: list[int] = []
    for index in sorted(range(len(costs)), key=lambda i: (-costs[i], i)):
        if group and (len(group) == most or (len(group) + 1) * costs[group[0]] > MAX_BATCH_COST):
            yield group
            group = []
        group.append(index)
    if group:
        yield group


def open_runner(
    path: Path, precision: Precision, params: Mapping[str, Any], tower: Tower, scratch: Path
) -> tuple[Runner, str]:
    """The engine, loaded to be judged, and what judges it, in words. Raises GateError.

    path: as external_data.stage_input gives it; its digest was checked before the stage began.
    params: backend, evaluated ("engine", "typed-onnx" or a reference) and perhaps cpu_isa.
    """
    name, note, options = params["backend"], "", LoadOptions(precision=precision, cpu_isa=params.get("cpu_isa"))
    if params["evaluated"] == "typed-onnx" and precision is Precision.FP8:
        path = dequantize_weights(path, scratch)
    if params["evaluated"] != "engine":  # an engine is loaded as the server does it
        path = external_data.externalize_file(path, scratch)
    num_workers, engine = 1, path.read_bytes()
    if name == "onnxruntime":
        if params["evaluated"] == "typed-onnx":
            engine, note = emulate(engine, precision)
        # Whole batches side by side: its Q/DQ kernels use one thread, and one thread a batch gives the same
        # figures on every machine.
        num_workers, options = len(os.sched_getaffinity(0)), LoadOptions(precision=precision, num_threads=1)
    try:
        if name == "onnxruntime" and external_data.has_external_data(path):
            judged = path.with_name("judged.onnx")
            judged.write_bytes(engine)
            backend: Backend = onnxruntime.load(judged, options)
        else:
            backend = load(name, engine, options)
    except BackendError as error:
        raise GateError(f"{params['evaluated']} ({precision}) cannot be loaded to be judged: {error}") from error
    version = importlib.metadata.version(name) if name in {"onnxruntime", "openvino"} else ""
    judged_with = " ".join(part for part in (name, version, f"({note})" if note else "") if part)
    return Runner(backend=backend, tower=tower, num_workers=num_workers), judged_with


def realized(backend: Backend, engine: Path, typed: Path | None) -> dict[str, float]:
    """The share of matrix products in each number format, as the backend tells it.

    Where it cannot, as the graph says it: TensorRT keeps to the types of a typed ONNX.
    """
    shares = backend.realized_precision()
    if not shares and (typed is not None or backend.name == "onnxruntime"):
        graph = external_data.read_in_place(typed or engine)  # the engine is still loaded: not its weights once more
        shares = realized_precision(graph.SerializeToString())
    return {name: rounded(share) for name, share in sorted(shares.items())}


def is_reference(inputs: Mapping[str, Path], tower: str = ONLY) -> bool:
    """Whether an engine is the fp32 ONNX itself: then nothing else has to be run to compare with."""
    for part in ("", external_data.SUFFIX):
        fp32, engine = (inputs.get(suffixed(name, tower) + part) for name in ("fp32.onnx", "engine"))
        if not part and fp32 is None:
            return False
        if fp32 != engine and (fp32 is None or engine is None or not filecmp.cmp(fp32, engine, shallow=False)):
            return False
    return True


def rounded(value: Any) -> float:
    return round(float(value), 7)
