"""The realised precision, as the graph's products have it."""

from __future__ import annotations

from pathlib import Path

import onnx

from pipelines.onnx_graph.precision import realized_precision
from tests.support.models import bf16_product, write_onnx
from tests.support.profiles import make_tiny


def test_realised_precision_is_read_from_the_graph(tmp_path: Path):
    assert realized_precision(make_tiny(0).onnx) == {"fp32": 1.0}
    assert realized_precision(bf16_product()) == {"bf16": 1.0}
    assert realized_precision(write_onnx(tmp_path / "a.onnx", fp8=True).read_bytes()) == {"fp8": 1.0}
    assert realized_precision(write_onnx(tmp_path / "b.onnx", fp16=True).read_bytes()) == {"fp16": 1.0}


def test_a_product_with_one_quantized_factor_counts_as_the_higher_precision(tmp_path: Path):
    model = onnx.load(write_onnx(tmp_path / "fp8.onnx", fp8=True))
    product = next(node for node in model.graph.node if node.op_type == "MatMul")
    product.input[0] = next(node.input[0] for node in model.graph.node if node.op_type == "QuantizeLinear")
    assert realized_precision(model.SerializeToString()) == {"fp32": 1.0}
