"""Write a precision into an ONNX graph: casts for fp16 and bf16, calibrated Q/DQ pairs for fp8 and int8."""

from __future__ import annotations

import io
import json
import logging
import mmap
import os
import shutil
import tempfile
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

from pipelines.errors import QuantizeError
from pipelines.onnx_graph import external_data
from pipelines.quantize import fp8, half, int8
from pipelines.recipes import RECIPES
from pipelines.stage import StageRequest, StageResult
from serving.backends.base import Inputs
from serving.contract.profile import Precision
from serving.tasks.base import ONLY, suffixed
from serving.tasks.table import TASKS

CALIBRATED = (Precision.FP8, Precision.INT8)
QUANTIZED_OPS = ("QuantizeLinear", "DequantizeLinear")
PRODUCTS = ("MatMul", "Gemm", "Conv")

# An onnx.ModelProto, what the bytes of a light one's weights are, and facts about how it was made.
Made = tuple[Any, external_data.Content | None, Mapping[str, Any]]


def run(request: StageRequest) -> StageResult:
    """The stage: model.onnx in fp32, of each tower -> model.onnx in `params["precision"]`."""
    precision = Precision(request.params["precision"])
    make = MAKERS.get(precision)
    if make is None:
        raise QuantizeError(f"{precision} is no precision to quantize to; one of {', '.join(MAKERS)} is")
    outputs: dict[str, Path] = {}
    facts: dict[str, Any] = {}
    for tower in TASKS[request.params["task"]].towers:
        name = suffixed("model.onnx", tower)
        batches = _calibration(request, tower) if precision in CALIBRATED else []
        files, found = _typed(request, name, precision, make, batches)
        outputs |= {path.name: path for path in files}
        facts |= {key if tower == ONLY else f"{tower}.{key}": value for key, value in found.items()}
    return StageResult(outputs=outputs, facts=facts)


def _typed(
    request: StageRequest, name: str, precision: Precision, make: Maker, batches: list[Inputs]
) -> tuple[list[Path], dict[str, Any]]:
    """One ONNX in the precision, its weights beside it where the source's are, and facts about it."""
    beside = name + external_data.SUFFIX in request.inputs
    with _scratch(request.output_dir) as scratch, _captured() as log:
        try:
            source = external_data.at_hand(request.inputs, name, scratch)
            model, content, told = make(source, request.params, batches, scratch)
            scrub(model)
            files = external_data.write(model, request.output_dir / name, scratch, beside=beside, content=content)
        except QuantizeError:
            raise
        except Exception as error:  # modelopt, onnx and ONNX Runtime raise whatever they like
            lines = "\n".join(f"  {line}" for line in log.getvalue().splitlines()[-15:])
            raise QuantizeError(
                f"Model Optimizer could not make {precision}: {type(error).__name__}: {error}\n{lines}"
            ) from error
    if _mentions(files[0], str(request.output_dir)):
        raise QuantizeError("Model Optimizer wrote this build's folder into the ONNX: its bytes would differ elsewhere")
    facts = describe(model)
    if precision in CALIBRATED and not facts["num_quantized_products"]:
        raise QuantizeError(f"{precision}: no matrix product of this model was quantized; build it in fp16 instead")
    size_bytes = sum(path.stat().st_size for path in files)
    return files, {**facts, **told, "num_calibration_texts": len(batches), "size_bytes": size_bytes}


def autocast(source: Path, params: Mapping[str, Any], batches: Sequence[Inputs], scratch: Path) -> Made:
    """fp32 ONNX -> fp16 or bf16 ONNX, light; inputs and outputs keep their types."""
    light, folder = external_data.read_light(source, scratch)
    typed = half.with_casts(light, Precision(params["precision"]), scratch)
    return typed, lambda tensor: half.rounded(tensor, folder), {}


def to_fp8(source: Path, params: Mapping[str, Any], batches: Sequence[Inputs], scratch: Path) -> Made:
    """fp32 ONNX -> Q/DQ pairs around the matrix products, fp16 elsewhere, from the activations the batches cause."""
    import onnx
    from modelopt.onnx.quantization import quantize as modelopt_quantize

    # Model Optimizer's calibration takes 12 times the weights in memory.
    if external_data.is_beside_data(source) or source.stat().st_size > external_data.LARGE_BYTES:
        light, folder = external_data.read_light(source, scratch)
        return *fp8.with_pairs(light, folder, batches, scratch), {}
    # Model Optimizer writes beside its input, and names temporary files after it.
    copy, target = scratch / "fp32.onnx", scratch / "typed.onnx"
    shutil.copyfile(source, copy)
    modelopt_quantize(
        str(copy),
        quantize_mode="fp8",
        calibration_data_reader=Reader(batches),
        calibration_method="max",
        calibration_eps=["cpu"],
        high_precision_dtype="fp16",
        output_path=str(target),
        log_level="WARNING",
    )
    return onnx.load(target), None, {}


def to_int8(source: Path, params: Mapping[str, Any], batches: Sequence[Inputs], scratch: Path) -> Made:
    """fp32 ONNX -> Q/DQ pairs where the recovery search found that int8 does little harm."""
    if external_data.is_beside_data(source):
        raise QuantizeError(
            "int8: this model has more than 2 GiB of weights in fp32, and the search for what can be int8 holds them "
            "several times; build it in fp8, fp16 or bf16"
        )
    return int8.with_pairs(
        source, batches, scratch, zero_points=params["zero_points"], max_noise=float(params["max_noise"])
    )


Maker = Callable[[Path, Mapping[str, Any], Sequence[Inputs], Path], Made]
MAKERS: Mapping[Precision, Maker] = {
    Precision.FP16: autocast,
    Precision.BF16: autocast,
    Precision.FP8: to_fp8,
    Precision.INT8: to_int8,
}


class Reader:
    """Batches as Model Optimizer reads them: one after the other, and the first one as often as it likes."""

    def __init__(self, batches: Sequence[Inputs]) -> None:
        self._batches = [dict(batch) for batch in batches]
        self._position = 0

    def get_first(self) -> Inputs:
        return self._batches[0]

    def get_next(self) -> Inputs | None:
        if self._position == len(self._batches):
            return None
        self._position += 1
        return self._batches[self._position - 1]

    def rewind(self) -> None:
        self._position = 0


def scrub(model: Any) -> None:
    """Drop what depends on where or by what the file was made. In place."""
    model.producer_name, model.producer_version, model.doc_string = "enginery", "", ""
    model.graph.name, model.graph.doc_string = "enginery", ""
    del model.metadata_props[:]
    del model.graph.value_info[:]
    for node in model.graph.node:
        node.doc_string = ""
        del node.metadata_props[:]


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
    params = request.params
    texts = json.loads(request.inputs["texts.json"].read_bytes())["calibration"]
    num_texts = int(params["num_texts"])
    if num_texts < 1 or num_texts > len(texts):
        raise QuantizeError(
            f"calibration.num_texts is {num_texts}, there are {len(texts)} texts; ask for 1 to that many"
        )
    return RECIPES[params["task"]].calibration(
        tower,
        request.inputs["tokenizer.json"].read_bytes(),
        request.inputs["task.json"].read_bytes(),
        texts,
        num_texts,
        int(params["max_tokens"]),
        params,
    )


@contextmanager
def _scratch(output_dir: Path) -> Iterator[Path]:
    """A folder for temporary files, which ends with the stage: Model Optimizer also leaves some in the system's own."""
    folder = output_dir / "scratch"
    folder.mkdir()
    before, tempfile.tempdir = tempfile.tempdir, str(folder)
    try:
        yield folder
    finally:
        tempfile.tempdir = before
        shutil.rmtree(folder)


@contextmanager
def _captured() -> Iterator[io.StringIO]:
    """What the libraries print, kept for the error message instead of a person's terminal."""
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    log = io.StringIO()
    level = logging.root.manager.disable
    logging.disable(logging.INFO)
    try:
        with warnings.catch_warnings(), redirect_stdout(log), redirect_stderr(log):
            warnings.simplefilter("ignore")
            yield log
    finally:
        logging.disable(level)
        _detach_modelopt()


def _detach_modelopt() -> None:
    """Its log handlers hold the captured stream: later messages would go to a closed door."""
    logger = logging.getLogger("modelopt.onnx")
    for handler in list(logger.handlers):
        logger.removeHandler(handler)
