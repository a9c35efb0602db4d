"""Try int8 on a graph without building one: its scales and weights are inputs, so that a setting costs one run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipelines.onnx_graph.session import in_parallel, session
from pipelines.quantize.outlier_split import Chain
from serving.backends.base import Inputs

Array = NDArray[np.float32]
_LEAST = 1e-5  # of a channel's magnitude: one that no text used


@dataclass(frozen=True, kw_only=True)
class Product:
    """A matrix product of an activation by a weight."""

    node: str
    weight: str  # the initializer's name; (K, N)


@dataclass(frozen=True, kw_only=True)
class Group:
    """The products that take one activation, which is quantized once for all of them."""

    activation: str
    products: tuple[Product, ...]
    sizes: tuple[int, tuple[int, ...]]  # K, and the N of each product
    maker: str  # the operator that gives the activation
    chain: Chain | None  # where outlying channels can be set apart

    @property
    def kind(self) -> tuple[Any, ...]:
        """Groups of one kind stand at the same place of every layer, and are treated alike."""
        return (self.maker, self.sizes)

    @property
    def cost(self) -> int:
        """Multiplications for each token."""
        return self.sizes[0] * sum(self.sizes[1])


@dataclass(frozen=True, kw_only=True)
class Treatment:
    """How a group is quantized."""

    smoothing: float | None  # how much of the channels' magnitude the weights take over (SmoothQuant's alpha)
    num_apart: int = 0  # channels that stay wide


@dataclass(frozen=True, kw_only=True)
class Range:
    """The least and the largest value of each channel over the calibration texts. Shapes (K,)."""

    least: Array
    largest: Array

    @property
    def magnitude(self) -> Array:
        return np.maximum(np.maximum(np.abs(self.least), np.abs(self.largest)), np.float32(_LEAST))


@dataclass(frozen=True, kw_only=True)
class Knobs:
    """A group's numbers: `x / smooth` is rounded to `scale`, the channels `apart` are not."""

    smooth: Array | None  # (K,)
    apart: NDArray[np.int64]  # indices of channels
    scale: np.float32
    zero_point: int


def knobs(group: Group, treatment: Treatment, seen: Range, weights: Sequence[Array], zero_points: bool) -> Knobs:
    """The numbers of a treatment. `zero_points`: 0 to 255 around a zero point, else -128 to 127 around zero."""
    magnitude = seen.magnitude
    apart = np.sort(np.argsort(-magnitude, kind="stable")[: treatment.num_apart]).astype(np.int64)
    smooth = None
    if treatment.smoothing is not None:
        of_weights = np.maximum(np.max([np.abs(w).max(axis=1) for w in weights], axis=0), _LEAST)
        exact = magnitude.astype(np.float64) ** treatment.smoothing / of_weights ** (1 - treatment.smoothing)
        smooth = (exact / np.exp(np.log(exact).mean())).astype(np.float32)
    rest = np.setdiff1d(np.arange(len(magnitude)), apart)
    divisor = smooth[rest] if smooth is not None else np.float32(1)
    least = min(float((seen.least[rest] / divisor).min()), 0.0)
    largest = max(float((seen.largest[rest] / divisor).max()), 0.0)
    if zero_points:
        scale = _representable((largest - least) / 255)
        return Knobs(smooth=smooth, apart=apart, scale=scale, zero_point=int(np.clip(round(-least / scale), 0, 255)))
    return Knobs(smooth=smooth, apart=apart, scale=_representable(max(-least, largest) / 127), zero_point=0)


def rounded_weight(weight: Array) -> tuple[NDArray[np.int8], Array]:
    """A weight (K, N) in int8, and the scale of each of its columns (N,)."""
    scale = np.maximum(np.abs(weight).max(axis=0) / 127, np.float32(2.0**-14)).astype(np.float16).astype(np.float32)
    return np.clip(np.rint(weight / scale), -127, 127).astype(np.int8), scale


def _representable(scale: float) -> np.float32:
    """A scale as fp16 has it too."""
    return np.float32(np.float16(max(scale, 2.0**-14)))


class Trial:
    """A graph with knobs, the texts it is tried on, and the fp32 graph's answers to them."""

    def __init__(self, model: Any, groups: Sequence[Group], weights: Mapping[str, Array], folder: Path) -> None:
        self.groups, self.weights = groups, weights
        path = folder / "knobs.onnx"
        path.write_bytes(_with_knobs(model, groups))
        self._session = session(path)
        path.unlink()
        self._output = self._session.get_outputs()[0].name
        self._wide = {name: value for group in groups for name, value in self._feeds(group, None, True).items()}
        self._batches: Sequence[Inputs] = ()

    def expect(self, batches: Sequence[Inputs]) -> None:
        """Take the fp32 answers to these batches as what is wanted."""
        self._batches = batches
        self._wanted = self._run({})
        spread = self._wanted - self._wanted.mean(axis=0)
        self._power = float((spread**2).sum())

    def noise(self, settings: Mapping[str, Knobs], zero_points: bool) -> float:
        """The share of the answers' variance that these groups' int8 disturbs; other groups stay in fp32."""
        feeds: dict[str, Any] = {}
        for group in self.groups:
            if group.activation in settings:
                feeds |= self._feeds(group, settings[group.activation], zero_points)
        return float(((self._run(feeds) - self._wanted) ** 2).sum()) / max(self._power, 1e-30)

    def _run(self, feeds: Mapping[str, Any]) -> NDArray[np.float64]:
        def one(batch: Inputs) -> NDArray[np.float64]:
            [answer] = self._session.run([self._output], {**batch, **self._wide, **feeds})
            return np.asarray(answer, dtype=np.float64)

        return np.concatenate(in_parallel(one, self._batches))

    def _feeds(self, group: Group, setting: Knobs | None, zero_points: bool) -> dict[str, Any]:
        size, name = group.sizes[0], group.activation
        inverse, apart = np.zeros(size, np.float32), np.ones(size, np.float32)
        scale, low, high = np.float32(1), 0.0, 0.0
        feeds: dict[str, Any] = {}
        if setting is not None:
            apart[:] = 0
            apart[setting.apart] = 1
            inverse = (1 - apart) / (setting.smooth if setting.smooth is not None else np.float32(1))
            scale = setting.scale
            low, high = (0 - setting.zero_point, 255 - setting.zero_point) if zero_points else (-128, 127)
        for product in group.products:
            weight = self.weights[product.weight]
            if setting is not None:
                smoothed = weight * setting.smooth[:, None] if setting.smooth is not None else weight.copy()
                smoothed[setting.apart] = 0
                narrow, scales = rounded_weight(smoothed)
                wide = narrow.astype(np.float32) * scales
                wide[setting.apart] = weight[setting.apart]
                weight = wide
            feeds[f"{product.node}/weight"] = weight
        numbers = {"inverse": inverse / scale, "apart": apart, "scale": scale, "low": low, "high": high}
        return feeds | {f"{name}/{knob}": np.asarray(value, dtype=np.float32) for knob, value in numbers.items()}


def ranges(model: Any, groups: Sequence[Group], batches: Sequence[Inputs], folder: Path) -> list[dict[str, Range]]:
    """For each batch, the range of each activation that has a row for each token."""
    path = folder / "ranges.onnx"
    path.write_bytes(_with_ranges(model, groups))
    calibrated = session(path)
    path.unlink()
    names = [group.activation for group in groups]
    outputs = [f"{name}/{figure}" for name in names for figure in ("least", "largest", "shape")]

    def one(batch: Inputs) -> dict[str, Range]:
        found = calibrated.run(outputs, dict(batch))
        return {
            name: Range(least=least, largest=largest)
            for name, least, largest, shape in zip(names, found[::3], found[1::3], found[2::3], strict=True)
            if int(np.prod(shape[:-1])) > 1
        }

    return in_parallel(one, batches)


def joined(found: Sequence[Mapping[str, Range]]) -> dict[str, Range]:
    """The ranges over several batches."""
    names = sorted({name for each in found for name in each})
    return {
        name: Range(
            least=np.min([each[name].least for each in found if name in each], axis=0),
            largest=np.max([each[name].largest for each in found if name in each], axis=0),
        )
        for name in names
    }


def _with_knobs(model: Any, groups: Sequence[Group]) -> bytes:
    """Before each product its activation is rounded as the knobs say, and its weight is an input."""
    import onnx
    from onnx import TensorProto, helper

    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    graph = copy.graph
    weights = {product.weight for group in groups for product in group.products}
    by_node = {product.node: group for group in groups for product in group.products}
    kept = [tensor for tensor in model.graph.initializer if tensor.name not in weights]
    nodes, done = [], set()

    def knob(name: str, rank: int) -> str:
        shape = [f"{name}/{axis}" for axis in range(rank)]
        graph.input.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, shape))
        return name

    for node in model.graph.node:
        group = by_node.get(node.name)
        if group is None:
            nodes.append(node)
            continue
        name = group.activation
        if name not in done:
            done.add(name)
            low, high, scale = knob(f"{name}/low", 0), knob(f"{name}/high", 0), knob(f"{name}/scale", 0)
            inverse, apart = knob(f"{name}/inverse", 1), knob(f"{name}/apart", 1)
            nodes += [
                helper.make_node("Mul", [name, inverse], [f"{name}/scaled"]),
                helper.make_node("Round", [f"{name}/scaled"], [f"{name}/steps"]),
                helper.make_node("Clip", [f"{name}/steps", low, high], [f"{name}/held"]),
                helper.make_node("Mul", [f"{name}/held", scale], [f"{name}/narrow"]),
                helper.make_node("Mul", [name, apart], [f"{name}/wide"]),
                helper.make_node("Add", [f"{name}/narrow", f"{name}/wide"], [f"{name}/rounded"]),
            ]
        tried = onnx.NodeProto()
        tried.CopyFrom(node)
        tried.input[:] = [f"{name}/rounded", knob(f"{node.name}/weight", 2)]
        nodes.append(tried)
    graph.ClearField("node")
    graph.ClearField("initializer")
    graph.node.extend(nodes)
    graph.initializer.extend(kept)
    return bytes(copy.SerializeToString())


def _with_ranges(model: Any, groups: Sequence[Group]) -> bytes:
    """Three more outputs for each activation: the least and largest of each channel, and its shape."""
    import onnx
    from onnx import TensorProto, helper

    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    graph = copy.graph
    graph.initializer.append(helper.make_tensor("int8/channels", TensorProto.INT64, [2], [-1, 0]))
    graph.initializer.append(helper.make_tensor("int8/rows", TensorProto.INT64, [1], [0]))
    for group in groups:
        name, size = group.activation, group.sizes[0]
        flat = helper.make_tensor(f"{name}/flat-shape", TensorProto.INT64, [2], [-1, size])
        graph.initializer.append(flat)
        graph.node.extend(
            [
                helper.make_node("Reshape", [name, flat.name], [f"{name}/flat"]),
                helper.make_node("ReduceMin", [f"{name}/flat", "int8/rows"], [f"{name}/least"], keepdims=0),
                helper.make_node("ReduceMax", [f"{name}/flat", "int8/rows"], [f"{name}/largest"], keepdims=0),
                helper.make_node("Shape", [name], [f"{name}/shape"]),
            ]
        )
        for figure, kind in (
            ("least", TensorProto.FLOAT),
            ("largest", TensorProto.FLOAT),
            ("shape", TensorProto.INT64),
        ):
            graph.output.append(helper.make_tensor_value_info(f"{name}/{figure}", kind, None))
    return bytes(copy.SerializeToString())
