"""The stage quantize: answers close to the reference, the same bytes in two folders, errors that say why."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest

from pipelines.errors import QuantizeError
from pipelines.onnx_graph.edit import scrub
from pipelines.quantize.model_optimizer import Reader
from serving.contract.profile import Precision
from serving.tasks.embed import EmbedSpec, Encoder, load_golden
from tests.support.models import RunStage, body

INPUTS = ("model.onnx", "tokenizer.json", "task.json")


def _params(precision: str) -> dict[str, Any]:
    int8 = {"zero_points": True, "max_nsr": 0.01}
    return {"task": "embed", "precision": precision, "num_texts": 8, "max_tokens": 32, **int8}


def _inputs(exported: Mapping[str, Path], texts_json: Path) -> dict[str, Path]:
    return {**{name: exported[name] for name in INPUTS}, "texts.json": texts_json}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("precision", "min_cosine", "num_quantized"),
    [("fp16", 0.999, 0), ("bf16", None, 0), ("fp8", 0.95, 12), ("int8", 0.98, 12)],
)
def test_a_typed_onnx_keeps_its_inputs_and_close_to_the_reference(
    exported: Mapping[str, Path],
    texts_json: Path,
    run_stage: RunStage,
    precision: str,
    min_cosine: float | None,
    num_quantized: int,
) -> None:
    result = run_stage("quantize", _params(precision), _inputs(exported, texts_json))
    path = result.outputs["model.onnx"]
    assert [p.name for p in path.parent.iterdir()] == ["model.onnx"], "temporary files stayed"
    assert result.facts["num_quantized_products"] == num_quantized
    model = onnx.load(path)
    types = {v.name: v.type.tensor_type.elem_type for v in (*model.graph.input, *model.graph.output)}
    integer, real = onnx.TensorProto.INT64, onnx.TensorProto.FLOAT
    assert types == dict.fromkeys(("input_ids", "attention_mask", "token_type_ids"), integer) | {"embeddings": real}
    if min_cosine is None:  # ONNX Runtime has no bf16 arithmetic on CPU
        weights = {tensor.data_type for tensor in model.graph.initializer if len(tensor.dims) == 2}
        assert weights == {onnx.TensorProto.BFLOAT16}
        return
    golden = load_golden(exported["golden.json"].read_bytes())
    spec = EmbedSpec.load(exported["task.json"].read_bytes())
    items = Encoder(exported["tokenizer.json"].read_bytes(), spec).encode(golden.texts, truncate="END")
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    [vectors] = session.run(None, dict(spec.towers[0].collate(items)))
    assert (vectors * golden.vectors).sum(axis=1).min() > min_cosine


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["bf16", "fp8", "int8"])
def test_two_quantizations_in_two_folders_give_the_same_bytes(
    exported: Mapping[str, Path],
    texts_json: Path,
    run_stage: RunStage,
    run_stage_afresh: Callable[..., dict[str, Any]],
    precision: str,
) -> None:
    inputs = _inputs(exported, texts_json)
    here = run_stage("quantize", _params(precision), inputs).outputs["model.onnx"]
    answer = run_stage_afresh("quantize", _params(precision), inputs, f"elsewhere-{precision}", cpu=0)
    assert answer["exit_code"] == 0, answer
    there = Path(answer["outputs"]["model.onnx"])
    assert hashlib.sha256(there.read_bytes()).digest() == hashlib.sha256(here.read_bytes()).digest()


@pytest.mark.slow
def test_a_graph_that_cannot_be_read_is_an_error_that_says_so(
    exported: Mapping[str, Path], texts_json: Path, run_stage: RunStage, tmp_path: Path
) -> None:
    broken = tmp_path / "broken.onnx"
    broken.write_bytes(exported["model.onnx"].read_bytes()[:5000])
    with pytest.raises(QuantizeError, match=r"broken\.onnx is no whole ONNX file; export the model again"):
        run_stage("quantize", _params("fp16"), {**_inputs(exported, texts_json), "model.onnx": broken})


def test_fp32_is_not_a_precision_to_quantize_to(run_stage: RunStage) -> None:
    with pytest.raises(QuantizeError, match="fp32 is no precision to quantize to; one of fp16, bf16, fp8, int8 is"):
        run_stage("quantize", _params("fp32"))


def test_asking_for_more_calibration_texts_than_there_are_is_an_error(run_stage: RunStage, texts_json: Path) -> None:
    with pytest.raises(QuantizeError, match=r"calibration\.num_texts is 9999"):
        run_stage("quantize", {**_params(Precision.FP8), "num_texts": 9999}, {"texts.json": texts_json})


def test_the_reader_gives_every_batch_once_and_the_first_as_often_as_asked() -> None:
    batches = [{"input_ids": np.full((1, 2), i)} for i in range(3)]
    reader = Reader(batches)
    assert [int(reader.get_first()["input_ids"][0, 0]) for _ in range(2)] == [0, 0]
    given = []
    while (batch := reader.get_next()) is not None:
        given.append(int(batch["input_ids"][0, 0]))
    assert given == [0, 1, 2]


def test_nothing_of_where_a_graph_was_made_stays_in_it() -> None:
    model = body()
    model.doc_string = model.graph.doc_string = model.graph.name = model.graph.node[0].doc_string = "/somewhere/x"
    entry = model.metadata_props.add()
    entry.key, entry.value = "source", "/somewhere/x"
    scrub(model)
    assert b"/somewhere" not in model.SerializeToString()
