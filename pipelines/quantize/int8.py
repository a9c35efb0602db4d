"""Write int8 into an ONNX graph: the recovery search, and the pairs it settles on.

Rounded as it stands, an encoder loses far more than a gate lets pass: a few channels of its activations are ten times
larger than the others, and one scale serves all. Three remedies, each tried and measured on texts the scales were not
taken from: *smoothing* moves part of a channel's magnitude into the weight (Xiao et al. 2022), *setting apart* leaves a
few outlying channels behind an activation function wide, and what still disturbs the answers most for the work it
saves *stays wide*.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipelines.errors import QuantizeError
from pipelines.onnx_graph import external_data
from pipelines.quantize import half, outlier_split
from pipelines.quantize.fake_quant import (
    Array,
    Group,
    Knobs,
    Product,
    Range,
    Treatment,
    Trial,
    joined,
    knobs,
    ranges,
    rounded_weight,
)
from serving.backends.base import Inputs
from serving.contract.profile import Precision

ALIGNMENT = 16  # int8 units take rows and columns in sixteens
SMOOTHINGS = (None, 0.5, 0.65, 0.8)
NUM_APART = 64  # a multiple of what vectors hold: little work beside a feed-forward block's thousands of channels
HELD_OUT = 4  # every fourth text judges, the others give the ranges


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What the search settled on."""

    treatments: Mapping[str, Treatment]  # activation -> how it is quantized; what is not here stays wide
    noise: float  # the share of the answers' variance that is disturbed, on held-out texts
    facts: Mapping[str, Any]


def with_pairs(
    source: Path, batches: Sequence[Inputs], scratch: Path, *, zero_points: bool, max_noise: float
) -> tuple[Any, external_data.Content, Mapping[str, Any]]:
    """fp32 ONNX -> int8 where the search says so, what its weights' bytes are, and facts about the search.

    `zero_points`: for CPUs: activations are 0 to 255 around a zero point, and the rest stays fp32, which OpenVINO
    computes in bf16 where the CPU has it. Else for TensorRT: activations are symmetric, and the rest is fp16.
    """
    model = external_data.read(source)
    groups = groups_of(model)
    if len(batches) < HELD_OUT:
        raise QuantizeError(f"int8: calibration.num_texts is {len(batches)}; the search needs {HELD_OUT} or more")
    found = ranges(model, groups, batches, scratch)
    groups = [group for group in groups if all(group.activation in each for each in found)]
    weights = _weights(model, groups)
    fitted = joined([each for number, each in enumerate(found) if number % HELD_OUT != HELD_OUT - 1])
    trial = Trial(model, groups, weights, scratch)
    trial.expect(batches[HELD_OUT - 1 :: HELD_OUT])
    plan = search(trial, fitted, zero_points=zero_points, max_noise=max_noise)
    if not plan.treatments:
        raise QuantizeError(
            f"int8: every matrix product disturbs the answers by more than max_noise {max_noise} allows; "
            "leave int8 out, or allow more"
        )
    del trial
    everything = joined(found)
    settings = {
        group.activation: knobs(
            group,
            plan.treatments[group.activation],
            everything[group.activation],
            [weights[product.weight] for product in group.products],
            zero_points,
        )
        for group in groups
        if group.activation in plan.treatments
    }
    typed, content = _write(model, groups, settings, scratch, zero_points)
    return typed, content, plan.facts


def groups_of(model: Any) -> list[Group]:
    """Every activation that is multiplied by weights of a size that int8 hardware takes, and nothing else's."""
    found = outlier_split.Indexed(model)
    by_activation: dict[str, list[Any]] = {}
    for node in model.graph.node:
        fits = found.is_product(node) and not any(size % ALIGNMENT for size in found.arrays[node.input[1]].shape)
        if fits and node.name and len(found.users[node.input[1]]) == 1:
            by_activation.setdefault(node.input[0], []).append(node)
    groups = []
    for activation, nodes in by_activation.items():
        maker = found.maker.get(activation)
        alone = len(found.users[activation]) == len(nodes) == 1
        shapes = [found.arrays[node.input[1]].shape for node in nodes]
        groups.append(
            Group(
                activation=activation,
                products=tuple(Product(node=node.name, weight=node.input[1]) for node in nodes),
                sizes=(shapes[0][0], tuple(shape[1] for shape in shapes)),
                maker=maker.op_type if maker is not None else "",
                chain=outlier_split.chain_of(found, nodes[0]) if alone and shapes[0][0] > 4 * NUM_APART else None,
            )
        )
    return groups


def search(trial: Trial, seen: Mapping[str, Range], *, zero_points: bool, max_noise: float) -> Plan:
    """The best treatment of each kind of group; then groups go back to wide until the noise is allowed."""
    groups = trial.groups

    def setting(group: Group, treatment: Treatment) -> Knobs:
        weights = [trial.weights[product.weight] for product in group.products]
        return knobs(group, treatment, seen[group.activation], weights, zero_points)

    treatments: dict[str, Treatment] = {}
    tried: list[dict[str, Any]] = []
    for kind in dict.fromkeys(group.kind for group in groups):
        alike = [group for group in groups if group.kind == kind]
        candidates = [Treatment(smoothing=alpha) for alpha in SMOOTHINGS]
        if all(group.chain for group in alike):
            candidates += [Treatment(smoothing=alpha, num_apart=NUM_APART) for alpha in (None, 0.5)]
        noise = {
            treatment: _rounded(trial.noise({g.activation: setting(g, treatment) for g in alike}, zero_points))
            for treatment in candidates
        }
        best = min(candidates, key=noise.__getitem__)  # of equals the simplest, which comes first
        treatments |= {group.activation: best for group in alike}
        tried.append(
            {
                "products": f"{len(alike)} x {kind[1][0]} by {' + '.join(str(n) for n in kind[1][1])}",
                "smoothing": best.smoothing,
                "num_apart": best.num_apart,
                "noise": noise[best],
                "noise_untreated": noise[candidates[0]],
            }
        )
    settings = {group.activation: setting(group, treatments[group.activation]) for group in groups}
    noise_of_all = total = trial.noise(settings, zero_points)
    wide: list[str] = []
    if total > max_noise:
        alone = {g.activation: trial.noise({g.activation: settings[g.activation]}, zero_points) for g in groups}
        for group in sorted(groups, key=lambda g: -_rounded(alone[g.activation] / g.cost)):
            del settings[group.activation], treatments[group.activation]
            wide.append(group.products[0].node)
            total = trial.noise(settings, zero_points) if settings else 0.0
            if total <= max_noise:
                break
    facts = {
        "int8_noise": _rounded(total),
        "int8_noise_of_all": _rounded(noise_of_all),
        "int8_treatments": tried,
        "int8_kept_wide": wide,
    }
    return Plan(treatments=treatments, noise=total, facts=facts)


def _rounded(noise: float) -> float:
    """Two digits: more of them may differ from machine to machine, and must not decide."""
    return float(f"{noise:.1e}")


def _weights(model: Any, groups: Sequence[Group]) -> dict[str, Array]:
    from onnx import numpy_helper

    names = {product.weight for group in groups for product in group.products}
    return {t.name: numpy_helper.to_array(t).astype(np.float32) for t in model.graph.initializer if t.name in names}


def _write(
    model: Any, groups: Sequence[Group], settings: Mapping[str, Knobs], scratch: Path, zero_points: bool
) -> tuple[Any, external_data.Content]:
    """The graph with outliers set apart, smoothed and, for GPUs, cast to fp16; then the pairs."""
    import onnx
    from onnx import numpy_helper

    chains = {
        group.activation: group.chain
        for group in groups
        if group.chain is not None and group.activation in settings and len(settings[group.activation].apart)
    }
    outlier_split.set_apart(model, chains, {name: settings[name].apart for name in chains})
    in_two = {node for chain in chains.values() for node in (*chain.roots, chain.down)}
    pairs = {
        f"{product.node}/{outlier_split.REST}" if product.node in in_two else product.node: settings[group.activation]
        for group in groups
        if group.activation in settings
        for product in group.products
    }
    _smooth(model, pairs)
    named = {node.input[1]: node.name for node in model.graph.node if node.name in pairs}
    weights = {
        named[tensor.name]: (tensor.name, rounded_weight(numpy_helper.to_array(tensor)))
        for tensor in model.graph.initializer
        if tensor.name in named
    }
    path = scratch / "treated.onnx"
    onnx.save(model, path)
    light, folder = external_data.read_light(path, scratch)
    typed = light if zero_points else half.with_casts(light, Precision.FP16, scratch)
    _insert(typed, pairs, weights, zero_points)

    def content(tensor: Any) -> bytes:
        as_it_is = zero_points or not external_data.is_external(tensor)
        return external_data.stored(tensor, folder) if as_it_is else half.rounded(tensor, folder)

    return typed, content


def _smooth(model: Any, pairs: Mapping[str, Knobs]) -> None:
    """Divide activations by their smoothing and multiply the weights' rows by it. In place."""
    from onnx import helper, numpy_helper

    graph = model.graph
    tensors = {tensor.name: tensor for tensor in graph.initializer}
    nodes, done = [], set()
    for node in graph.node:
        setting = pairs.get(node.name)
        if setting is not None and setting.smooth is not None:
            smooth = np.delete(setting.smooth, setting.apart)
            activation = node.input[0]
            name = f"{activation}/smooth"
            if activation not in done:
                done.add(activation)
                graph.initializer.append(numpy_helper.from_array(1 / smooth, f"{name}/inverse"))
                nodes.append(helper.make_node("Mul", [activation, f"{name}/inverse"], [name], name=f"{name}/Mul"))
            weight = tensors[node.input[1]]
            heavier = (numpy_helper.to_array(weight) * smooth[:, None]).astype(np.float32)
            weight.CopyFrom(numpy_helper.from_array(heavier, weight.name))
            node.input[0] = name
        nodes.append(node)
    _replace(graph, nodes)


def _insert(
    typed: Any,
    pairs: Mapping[str, Knobs],
    weights: Mapping[str, tuple[str, tuple[NDArray[np.int8], Array]]],
    zero_points: bool,
) -> None:
    """Write the pairs. In place."""
    from onnx import helper, numpy_helper

    graph = typed.graph
    real = np.float32 if zero_points else np.float16
    integer = np.uint8 if zero_points else np.int8
    nodes, done = [], set()

    def constant(name: str, value: Any) -> str:
        graph.initializer.append(numpy_helper.from_array(np.asarray(value), name))
        return name

    for node in list(graph.node):
        if node.name not in pairs:
            nodes.append(node)
            continue
        activation, (weight, (rounded, scale)) = node.input[0], weights[node.name]
        if activation not in done:
            done.add(activation)
            pair = [
                constant(f"{activation}/int8-scale", real(pairs[node.name].scale)),
                constant(f"{activation}/int8-zero", integer(pairs[node.name].zero_point)),
            ]
            for op, taken, given in (("Quantize", "", "/int8"), ("Dequantize", "/int8", "/rounded")):
                at = f"{activation}{given}"
                nodes.append(helper.make_node(f"{op}Linear", [activation + taken, *pair], [at], name=f"{at}/{op}"))
        triple = [
            constant(f"{weight}/int8", rounded),
            constant(f"{weight}/int8-scale", scale.astype(real)),
            constant(f"{weight}/int8-zero", np.zeros(len(scale), np.int8)),
        ]
        at = f"{weight}/rounded"
        nodes.append(helper.make_node("DequantizeLinear", triple, [at], axis=1, name=f"{at}/Dequantize"))
        node.input[:] = [f"{activation}/rounded", at]
        nodes.append(node)
    _replace(graph, nodes)


def _replace(graph: Any, nodes: Sequence[Any]) -> None:
    """These nodes, and of the weights those they use."""
    used = {name for node in nodes for name in node.input}
    weights = [tensor for tensor in graph.initializer if tensor.name in used]
    for field, values in (("node", nodes), ("initializer", weights)):
        copies = [type(value).FromString(value.SerializeToString()) for value in values]
        graph.ClearField(field)
        getattr(graph, field).extend(copies)
