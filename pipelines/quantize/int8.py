"""Write int8 into an ONNX graph where a recovery search finds that it disturbs the answers little (ADR 5).

A few channels of an encoder's activations are ten times larger than the others, and one scale serves all: rounded as
it is, an encoder loses far more than a gate accepts. Three remedies are tried, and measured on texts that the scales
were not taken from: smoothing moves part of a channel's magnitude into the weight (Xiao et al. 2022), outlier channel
splitting keeps a few channels behind an activation function in high precision, and the products with most noise for
the work they save are excluded from quantization.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pipelines.errors import QuantizeError
from pipelines.onnx_graph import external_data
from pipelines.quantize import outlier_split
from pipelines.quantize.activation_ranges import Array, Range, activation_ranges, merged
from pipelines.quantize.fake_quant import FakeQuantSession, Group, QuantParams, Treatment, quant_params
from pipelines.quantize.int8_graph import write_int8
from pipelines.quantize.products import GraphIndex, Product, is_aligned
from serving.backends.base import Inputs

SMOOTHINGS = (None, 0.5, 0.65, 0.8)
NUM_OUTLIERS = 64  # fills vector registers, and is little work next to a feed-forward block's thousands of channels
HELD_OUT = 4  # every fourth text judges, the others give the ranges


@dataclass(frozen=True, kw_only=True)
class SearchResult:
    """What the search chose."""

    treatments: Mapping[str, Treatment]  # activation -> how it is quantized; others are excluded
    facts: Mapping[str, Any]


def with_pairs(
    source: Path, batches: Sequence[Inputs], scratch: Path, *, zero_points: bool, max_nsr: float
) -> tuple[Any, external_data.Content, Mapping[str, Any]]:
    """fp32 ONNX -> an int8 graph, the bytes of its external tensors, and facts about the search.

    `zero_points`: for CPUs: activations are 0 to 255 around a zero point, and the rest stays fp32, which OpenVINO
    computes in bf16 where the CPU has it. Else for TensorRT: activations are symmetric, and the rest is fp16.
    """
    model = external_data.read(source)
    if len(batches) < HELD_OUT:
        raise QuantizeError(f"int8: calibration.num_texts is {len(batches)}; the search needs {HELD_OUT} or more")
    groups = groups_of(model)
    ranges = activation_ranges(model, {group.activation: group.sizes[0] for group in groups}, batches, scratch)
    groups = [group for group in groups if all(group.activation in each for each in ranges)]
    weights = _weights(model, groups)
    fitted = merged([each for number, each in enumerate(ranges) if number % HELD_OUT != HELD_OUT - 1])
    session = FakeQuantSession(model, groups, weights, batches[HELD_OUT - 1 :: HELD_OUT], scratch)
    result = search(session, fitted, zero_points=zero_points, max_nsr=max_nsr)
    if not result.treatments:
        raise QuantizeError(
            f"int8: every matrix product disturbs the answers by more than max_nsr {max_nsr} allows; "
            "leave int8 out, or allow more"
        )
    del session
    everything = merged(ranges)
    params = {
        group.activation: quant_params(
            result.treatments[group.activation],
            everything[group.activation],
            [weights[product.weight] for product in group.products],
            zero_points,
        )
        for group in groups
        if group.activation in result.treatments
    }
    return *write_int8(model, groups, params, scratch, zero_points=zero_points), result.facts


def groups_of(model: Any) -> list[Group]:
    """Every activation that is multiplied by weights which nothing else takes, of a size that int8 hardware takes."""
    index = GraphIndex(model)
    by_activation: dict[str, list[Any]] = {}
    for node in model.graph.node:
        if not (node.name and index.is_product(node) and is_aligned(*index.arrays[node.input[1]].shape)):
            continue
        if len(index.consumers[node.input[1]]) == 1:
            by_activation.setdefault(node.input[0], []).append(node)
    groups = []
    for activation, nodes in by_activation.items():
        producer = index.producers.get(activation)
        shapes = [index.arrays[node.input[1]].shape for node in nodes]
        is_only_consumer = len(index.consumers[activation]) == len(nodes) == 1
        can_split = is_only_consumer and shapes[0][0] > 4 * NUM_OUTLIERS
        groups.append(
            Group(
                activation=activation,
                products=tuple(Product(node=node.name, activation=activation, weight=node.input[1]) for node in nodes),
                sizes=(shapes[0][0], tuple(shape[1] for shape in shapes)),
                producer=producer.op_type if producer is not None else "",
                chain=outlier_split.chain_of(index, nodes[0]) if can_split else None,
            )
        )
    return groups


def search(
    session: FakeQuantSession, ranges: Mapping[str, Range], *, zero_points: bool, max_nsr: float
) -> SearchResult:
    """The best treatment of each kind of group; then groups are excluded until the NSR of the answers is allowed."""
    groups = session.groups

    def params_of(group: Group, treatment: Treatment) -> QuantParams:
        weights = [session.weights[product.weight] for product in group.products]
        return quant_params(treatment, ranges[group.activation], weights, zero_points)

    def nsr(params: Mapping[str, QuantParams]) -> float:
        return session.nsr(params, zero_points=zero_points)

    treatments: dict[str, Treatment] = {}
    trials: list[dict[str, Any]] = []
    for kind in dict.fromkeys(group.kind for group in groups):
        alike = [group for group in groups if group.kind == kind]
        candidates = [Treatment(smoothing=alpha) for alpha in SMOOTHINGS]
        if all(group.chain for group in alike):
            candidates += [Treatment(smoothing=alpha, num_outliers=NUM_OUTLIERS) for alpha in (None, 0.5)]
        nsr_of = {each: _two_digits(nsr({g.activation: params_of(g, each) for g in alike})) for each in candidates}
        best = min(candidates, key=nsr_of.__getitem__)  # of equals the simplest, which comes first
        treatments |= {group.activation: best for group in alike}
        trials.append(
            {
                "products": f"{len(alike)} x {kind[1][0]} by {' + '.join(str(n) for n in kind[1][1])}",
                "smoothing": best.smoothing,
                "num_outliers": best.num_outliers,
                "nsr": nsr_of[best],
                "nsr_untreated": nsr_of[candidates[0]],
            }
        )
    params = {group.activation: params_of(group, treatments[group.activation]) for group in groups}
    nsr_of_all = total = nsr(params)
    excluded: list[str] = []
    if total > max_nsr:
        alone = {name: nsr({name: each}) for name, each in params.items()}
        for group in sorted(groups, key=lambda g: -_two_digits(alone[g.activation] / g.cost)):
            del params[group.activation], treatments[group.activation]
            excluded.append(group.products[0].node)
            total = nsr(params) if params else 0.0
            if total <= max_nsr:
                break
    facts = {
        "int8_nsr": _two_digits(total),
        "int8_nsr_of_all": _two_digits(nsr_of_all),
        "int8_treatments": trials,
        "int8_excluded": excluded,
    }
    return SearchResult(treatments=treatments, facts=facts)


def _two_digits(nsr: float) -> float:
    """More digits may differ from machine to machine, and must not decide."""
    return float(f"{nsr:.1e}")


def _weights(model: Any, groups: Sequence[Group]) -> dict[str, Array]:
    from onnx import numpy_helper

    names = {product.weight for group in groups for product in group.products}
    return {t.name: numpy_helper.to_array(t).astype(np.float32) for t in model.graph.initializer if t.name in names}
