"""Fake quantization: what int8 would do to a graph's answers, computed in fp32.

Scales and weights are inputs of one session, so that a setting costs one run and builds no graph.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipelines.onnx_graph.session import in_parallel, session
from pipelines.quantize.activation_ranges import Array, Range
from pipelines.quantize.outlier_split import Chain
from pipelines.quantize.products import Product
from serving.backends.base import Inputs

_MIN_MAGNITUDE = 1e-5  # of a weight's row
_MIN_SCALE = 2.0**-14  # the least normal number of fp16


@dataclass(frozen=True, kw_only=True)
class Group:
    """The products that take one activation, which is quantized once for all of them."""

    activation: str
    products: tuple[Product, ...]
    sizes: tuple[int, tuple[int, ...]]  # K, and the N of each product
    producer: str  # the operator that gives the activation
    chain: Chain | None  # by which outlier channels can be split off

    @property
    def kind(self) -> tuple[Any, ...]:
        """Groups of one kind stand at the same place of every layer, and are treated alike."""
        return (self.producer, self.sizes)

    @property
    def cost(self) -> int:
        """Multiplications for each token."""
        return self.sizes[0] * sum(self.sizes[1])


@dataclass(frozen=True, kw_only=True)
class Treatment:
    """How a group is quantized."""

    smoothing: float | None  # SmoothQuant's alpha: how much of the channels' magnitude the weights take over
    num_outliers: int = 0  # channels that are split off and stay in high precision


@dataclass(frozen=True, kw_only=True)
class QuantParams:
    """A group's numbers: x / smooth is rounded to multiples of `scale`, the channels `outliers` are not."""

    smooth: Array | None  # (K,)
    outliers: NDArray[np.int64]  # indices of channels, ascending
    scale: np.float32
    zero_point: int


def quant_params(treatment: Treatment, channels: Range, weights: Sequence[Array], zero_points: bool) -> QuantParams:
    """The numbers of a treatment. `zero_points`: 0 to 255 around a zero point, else -128 to 127 around zero.

    channels: the activation's. weights: of the group's products, each (K, N).
    """
    magnitude = channels.magnitude
    outliers = np.sort(np.argsort(-magnitude, kind="stable")[: treatment.num_outliers]).astype(np.int64)
    smooth = None
    if treatment.smoothing is not None:
        of_weights = np.maximum(np.max([np.abs(w).max(axis=1) for w in weights], axis=0), _MIN_MAGNITUDE)
        exact = magnitude.astype(np.float64) ** treatment.smoothing / of_weights ** (1 - treatment.smoothing)
        smooth = (exact / np.exp(np.log(exact).mean())).astype(np.float32)
    inliers = np.setdiff1d(np.arange(len(magnitude)), outliers)
    divisor = smooth[inliers] if smooth is not None else np.float32(1)
    least = min(float((channels.least[inliers] / divisor).min()), 0.0)
    largest = max(float((channels.largest[inliers] / divisor).max()), 0.0)
    if zero_points:
        scale = _in_fp16((largest - least) / 255)
        zero_point = int(np.clip(round(-least / scale), 0, 255))
    else:
        scale, zero_point = _in_fp16(max(-least, largest) / 127), 0
    return QuantParams(smooth=smooth, outliers=outliers, scale=scale, zero_point=zero_point)


def quantize_weight(weight: Array) -> tuple[NDArray[np.int8], Array]:
    """A weight (K, N) in int8, and the scale of each of its columns (N,), which fp16 can hold."""
    scale = np.maximum(np.abs(weight).max(axis=0) / 127, np.float32(_MIN_SCALE)).astype(np.float16).astype(np.float32)
    return np.clip(np.rint(weight / scale), -127, 127).astype(np.int8), scale


def _in_fp16(scale: float) -> np.float32:
    """The scale that fp16 has nearest, as float32."""
    return np.float32(np.float16(max(scale, _MIN_SCALE)))


class FakeQuantSession:
    """A graph whose quantization can be set at each run, the texts it runs on, and its fp32 answers to them."""

    def __init__(
        self,
        model: Any,
        groups: Sequence[Group],
        weights: Mapping[str, Array],
        batches: Sequence[Inputs],
        folder: Path,
    ) -> None:
        self.groups, self.weights = groups, weights
        path = folder / "fake-quant.onnx"
        path.write_bytes(_with_fake_quant(model, groups))
        self._session = session(path)
        path.unlink()
        self._output = self._session.get_outputs()[0].name
        self._batches = batches
        self._unquantized = {k: v for group in groups for k, v in self._feeds(group, None, zero_points=True).items()}
        self._reference = self._run({})
        self._signal = max(float(((self._reference - self._reference.mean(axis=0)) ** 2).sum()), 1e-30)

    def nsr(self, params: Mapping[str, QuantParams], *, zero_points: bool) -> float:
        """The noise-to-signal ratio of the answers: the share of their variance that int8 disturbs.

        params: of the activations that are quantized; other groups stay in fp32.
        """
        feeds: dict[str, Any] = {}
        for group in self.groups:
            if group.activation in params:
                feeds |= self._feeds(group, params[group.activation], zero_points=zero_points)
        return float(((self._run(feeds) - self._reference) ** 2).sum()) / self._signal

    def _run(self, feeds: Mapping[str, Any]) -> NDArray[np.float64]:
        def run(batch: Inputs) -> NDArray[np.float64]:
            [answer] = self._session.run([self._output], {**batch, **self._unquantized, **feeds})
            return np.asarray(answer, dtype=np.float64)

        return np.concatenate(in_parallel(run, self._batches))

    def _feeds(self, group: Group, params: QuantParams | None, *, zero_points: bool) -> dict[str, Any]:
        size, name = group.sizes[0], group.activation
        inverse, is_outlier = np.zeros(size, np.float32), np.ones(size, np.float32)
        scale, low, high = np.float32(1), 0.0, 0.0
        feeds: dict[str, Any] = {}
        if params is not None:
            is_outlier[:] = 0
            is_outlier[params.outliers] = 1
            inverse = (1 - is_outlier) / (params.smooth if params.smooth is not None else np.float32(1))
            scale = params.scale
            low, high = (0 - params.zero_point, 255 - params.zero_point) if zero_points else (-128, 127)
        for product in group.products:
            weight = self.weights[product.weight]
            feeds[f"{product.node}/weight"] = weight if params is None else _rounded_weight(weight, params)
        numbers = {"inverse": inverse / scale, "is-outlier": is_outlier, "scale": scale, "low": low, "high": high}
        return feeds | {f"{name}/{key}": np.asarray(value, dtype=np.float32) for key, value in numbers.items()}


def _rounded_weight(weight: Array, params: QuantParams) -> Array:
    """A weight (K, N) with its inliers' rows smoothed and rounded to int8, as float32."""
    smoothed = weight * params.smooth[:, None] if params.smooth is not None else weight.copy()
    smoothed[params.outliers] = 0
    integers, scales = quantize_weight(smoothed)
    rounded: Array = integers.astype(np.float32) * scales
    rounded[params.outliers] = weight[params.outliers]
    return rounded


def _with_fake_quant(model: Any, groups: Sequence[Group]) -> bytes:
    """Round each activation before its products by numbers that are inputs, as each product's weight is."""
    import onnx
    from onnx import TensorProto, helper

    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    graph = copy.graph
    weights = {product.weight for group in groups for product in group.products}
    by_node = {product.node: group for group in groups for product in group.products}
    tensors = [tensor for tensor in model.graph.initializer if tensor.name not in weights]
    nodes, rounded = [], set()

    def graph_input(name: str, rank: int) -> str:
        shape = [f"{name}/{axis}" for axis in range(rank)]
        graph.input.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, shape))
        return name

    for node in model.graph.node:
        group = by_node.get(node.name)
        if group is None:
            nodes.append(node)
            continue
        name = group.activation
        if name not in rounded:
            rounded.add(name)
            low, high, scale = (graph_input(f"{name}/{key}", 0) for key in ("low", "high", "scale"))
            inverse, is_outlier = (graph_input(f"{name}/{key}", 1) for key in ("inverse", "is-outlier"))
            nodes += [
                helper.make_node("Mul", [name, inverse], [f"{name}/scaled"]),
                helper.make_node("Round", [f"{name}/scaled"], [f"{name}/steps"]),
                helper.make_node("Clip", [f"{name}/steps", low, high], [f"{name}/clipped"]),
                helper.make_node("Mul", [f"{name}/clipped", scale], [f"{name}/inliers"]),
                helper.make_node("Mul", [name, is_outlier], [f"{name}/outliers"]),
                helper.make_node("Add", [f"{name}/inliers", f"{name}/outliers"], [f"{name}/rounded"]),
            ]
        product = onnx.NodeProto()
        product.CopyFrom(node)
        product.input[:] = [f"{name}/rounded", graph_input(f"{node.name}/weight", 2)]
        nodes.append(product)
    graph.ClearField("node")
    graph.ClearField("initializer")
    graph.node.extend(nodes)
    graph.initializer.extend(tensors)
    return bytes(copy.SerializeToString())
