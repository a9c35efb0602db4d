"""Write a precision into an ONNX graph: casts for fp16 and bf16, calibrated Q/DQ pairs for fp8 and int8.

What a graph holds whatever its precision belongs in `onnx_graph`, what an engine makes of it in `measure`.
"""

from __future__ import annotations

import json
import mmap
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec

from pipelines.errors import QuantizeError
from pipelines.onnx_graph import external_data
from pipelines.onnx_graph.edit import scrub
from pipelines.quantize import fp8, half, int8, model_optimizer
from pipelines.stage import StageRequest, StageResult, scratch_folder
from pipelines.tasks.base import Recipe, resolve
from pipelines.tasks.table import TASKS
from serving.backends.base import Inputs
from serving.contract.profile import Precision
from serving.tasks.base import ONLY, suffixed
from serving.tasks.table import TASKS as SERVED

CALIBRATED = (Precision.FP8, Precision.INT8)
QUANTIZED_OPS = ("QuantizeLinear", "DequantizeLinear")
PRODUCTS = ("MatMul", "Gemm", "Conv")

# An onnx.ModelProto, the bytes of its external tensors (None: those of their locations), and facts for a person.
Typed = tuple[Any, external_data.Content | None, Mapping[str, Any]]


def run(request: StageRequest) -> StageResult:
    """The stage: model.onnx in fp32, of each tower -> model.onnx in `params["precision"]`."""
    precision = Precision(request.params["precision"])
    quantizer = QUANTIZERS.get(precision)
    if quantizer is None:
        raise QuantizeError(f"{precision} is no precision to quantize to; one of {', '.join(QUANTIZERS)} is")
    outputs: dict[str, Path] = {}
    facts: dict[str, Any] = {}
    for tower in SERVED[request.params["task"]].towers:
        name = suffixed("model.onnx", tower)
        batches = _calibration(request, tower) if precision in CALIBRATED else []
        files, facts_of_tower = _quantize(request, name, precision, quantizer, batches)
        outputs |= {path.name: path for path in files}
        facts |= {key if tower == ONLY else f"{tower}.{key}": value for key, value in facts_of_tower.items()}
    return StageResult(outputs=outputs, facts=facts)


def _quantize(
    request: StageRequest, name: str, precision: Precision, quantizer: Quantizer, batches: list[Inputs]
) -> tuple[list[Path], dict[str, Any]]:
    """One ONNX in the precision, with external data where the source has it, and facts about it."""
    external = name + external_data.SUFFIX in request.inputs
    with scratch_folder(request) as scratch, model_optimizer.captured() as log:
        try:
            source = external_data.stage_input(request.inputs, name, scratch)
            model, content, facts = quantizer(source, request.params, batches, scratch)
            scrub(model)
            files = external_data.write(model, request.output_dir / name, scratch, external=external, content=content)
        except QuantizeError:
            raise
        except Exception as error:  # modelopt, onnx and ONNX Runtime raise whatever they like
            lines = "\n".join(f"  {line}" for line in log.getvalue().splitlines()[-15:])
            raise QuantizeError(
                f"Model Optimizer could not make {precision}: {type(error).__name__}: {error}\n{lines}"
            ) from error
    if _mentions(files[0], str(request.output_dir)):
        raise QuantizeError("Model Optimizer wrote this build's folder into the ONNX: its bytes would differ elsewhere")
    figures = describe(model)
    if precision in CALIBRATED and not figures["num_quantized_products"]:
        raise QuantizeError(f"{precision}: no matrix product of this model was quantized; build it in fp16 instead")
    size_bytes = sum(path.stat().st_size for path in files)
    return files, {**figures, **facts, "num_calibration_texts": len(batches), "size_bytes": size_bytes}


def to_half(source: Path, params: Mapping[str, Any], batches: Sequence[Inputs], scratch: Path) -> Typed:
    """fp32 ONNX -> fp16 or bf16 ONNX, externalized; inputs and outputs keep their types."""
    model, folder = external_data.read_externalized(source, scratch)
    typed = half.with_casts(model, Precision(params["precision"]), scratch)
    return typed, lambda tensor: half.rounded(tensor, folder), {}


def to_fp8(source: Path, params: Mapping[str, Any], batches: Sequence[Inputs], scratch: Path) -> Typed:
    """fp32 ONNX -> Q/DQ pairs around the matrix products, fp16 elsewhere, from the activations the batches cause."""
    # Model Optimizer's calibration takes 12 times the weights in memory.
    if external_data.has_external_data(source) or source.stat().st_size > external_data.LARGE_BYTES:
        model, folder = external_data.read_externalized(source, scratch)
        return *fp8.with_pairs(model, folder, batches, scratch), {}
    return model_optimizer.quantize_fp8(source, batches, scratch), None, {}


def to_int8(source: Path, params: Mapping[str, Any], batches: Sequence[Inputs], scratch: Path) -> Typed:
    """fp32 ONNX -> Q/DQ pairs where the recovery search finds that int8 disturbs the answers little."""
    if external_data.has_external_data(source):
        raise QuantizeError(
            "int8: this model has more than 2 GiB of weights in fp32, and the search for what can be int8 holds them "
            "several times; build it in fp8, fp16 or bf16"
        )
    return int8.with_pairs(
        source, batches, scratch, zero_points=params["zero_points"], max_nsr=float(params["max_nsr"])
    )


Quantizer = Callable[[Path, Mapping[str, Any], Sequence[Inputs], Path], Typed]
QUANTIZERS: Mapping[Precision, Quantizer] = {
    Precision.FP16: to_half,
    Precision.BF16: to_half,
    Precision.FP8: to_fp8,
    Precision.INT8: to_int8,
}


def _mentions(path: Path, text: str) -> bool:
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        return content.find(text.encode()) >= 0


def describe(model: Any) -> dict[str, Any]:
    """What a person wants to know of a typed ONNX: its matrix products, and how many of them are quantized."""
    graph = model.graph
    ops = Counter(node.op_type for node in graph.node)
    dequantized = {name for node in graph.node if node.op_type == "DequantizeLinear" for name in node.output}
    # A transpose or a cast may stand between the pair and the product.
    for node in graph.node:
        if node.op_type in ("Transpose", "Cast", "Reshape") and node.input[0] in dequantized:
            dequantized.update(node.output)
    products = [node for node in graph.node if node.op_type in PRODUCTS]
    return {
        "opset": next(entry.version for entry in model.opset_import if entry.domain == ""),
        "num_nodes": len(graph.node),
        "num_products": len(products),
        "num_quantized_products": sum(1 for node in products if set(node.input[:2]) <= dequantized),
        "num_casts": ops["Cast"],
        "num_quantize_nodes": sum(ops[op] for op in QUANTIZED_OPS),
    }


def _calibration(request: StageRequest, tower: str) -> list[Inputs]:
    """One text or image a batch: padding has activations too, and would make ranges wider than any answer needs."""
    params = request.params
    texts = json.loads(request.inputs["texts.json"].read_bytes())["calibration"]
    num_texts = int(params["num_texts"])
    if num_texts < 1 or num_texts > len(texts):
        raise QuantizeError(
            f"calibration.num_texts is {num_texts}, there are {len(texts)} texts; ask for 1 to that many"
        )
    task = SERVED[params["task"]]
    spec = task.spec.load(request.inputs["task.json"].read_bytes())
    spec = msgspec.structs.replace(spec, max_tokens=min(int(params["max_tokens"]), spec.max_tokens))
    encoder = task.encoder(request.inputs["tokenizer.json"].read_bytes(), spec)
    recipe: Recipe = resolve(TASKS[params["task"]].recipe)
    (collate,) = (each.collate for each in spec.towers if each.name == tower)
    return [collate([item]) for item in recipe.calibration(encoder, tower, texts[:num_texts], params)]
