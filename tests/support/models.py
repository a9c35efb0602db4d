"""Real small things for the stages: a BERT with random weights, a graph made by hand, and ways to run a stage."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipelines import stage
from pipelines.stage import StageRequest, StageResult
from tests.support.families import write_head

ROOT = Path(__file__).parents[2]
SHAPES = {"min": [1, 1], "opt": [2, 16], "max": [4, 64]}
RunStage = Callable[..., StageResult]


@pytest.fixture
def run_stage(tmp_path: Path) -> RunStage:
    """Run a stage in this process, in a folder of its own."""

    def run(name: str, params: Mapping[str, Any], inputs: Mapping[str, Path] | None = None) -> StageResult:
        folder = tmp_path / f"{name}-{len(list(tmp_path.iterdir()))}"
        folder.mkdir()
        request = StageRequest(stage=name, subject="a test", params=params, inputs=inputs or {}, output_dir=folder)
        return stage.run(request)

    return run


@pytest.fixture
def run_stage_afresh(tmp_path: Path) -> Callable[..., dict[str, Any]]:
    """Run a stage as its own command, in a folder of the given name; returns what it answered."""

    def run(
        name: str, params: Mapping[str, Any], inputs: Mapping[str, Path], folder: str, cpu: int | None = None
    ) -> dict[str, Any]:
        output_dir = tmp_path / folder / "out"
        output_dir.mkdir(parents=True)
        request = {
            "stage": name,
            "subject": "a test",
            "params": dict(params),
            "inputs": {key: str(path) for key, path in inputs.items()},
            "output_dir": str(output_dir),
        }
        path = output_dir.parent / "request.json"
        path.write_text(json.dumps(request))

        def pin() -> None:
            if cpu is not None:
                os.sched_setaffinity(0, {cpu})

        done = subprocess.run(
            [sys.executable, "-m", "pipelines.stage", str(path)],
            cwd=output_dir.parent,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            preexec_fn=pin,
            capture_output=True,
            text=True,
            check=False,
        )
        answer_path = output_dir.parent / "result.json"
        assert answer_path.is_file(), done.stderr
        answer: dict[str, Any] = json.loads(answer_path.read_text())
        return {**answer, "exit_code": done.returncode}

    return run


@pytest.fixture(scope="session")
def texts_json(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("texts")
    request = StageRequest(stage="texts", subject="a test", params={}, inputs={}, output_dir=folder)
    return stage.run(request).outputs["texts.json"]


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A sentence-transformers folder: BERT of 2 layers and 64 dimensions, with a WordPiece vocabulary of letters."""
    import torch
    from transformers import BertConfig, BertModel, BertTokenizerFast

    folder = tmp_path_factory.mktemp("model") / "tiny-bert"
    folder.mkdir()
    letters = [chr(c) for c in range(33, 127) if not chr(c).isupper()]
    words = ["the", "return", "of", "and", "is", "file", "string", "object", "if", "not", "in", "for", "to", "or"]
    vocabulary = [
        "[PAD]",
        "[UNK]",
        "[CLS]",
        "[SEP]",
        "[MASK]",
        *words,
        *letters,
        *(f"##{letter}" for letter in letters),
    ]
    (folder / "vocab.txt").write_text("\n".join(vocabulary) + "\n")
    BertTokenizerFast(str(folder / "vocab.txt"), model_max_length=64).save_pretrained(folder)
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(vocabulary),
        hidden_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=128,
        max_position_embeddings=64,
        initializer_range=0.2,  # with the usual 0.02 all texts come out alike
    )
    BertModel(config, add_pooling_layer=False).save_pretrained(folder, safe_serialization=True)
    write_head(folder, prompts={"query": "query: ", "passage": "passage: "})
    return folder


EXPORT_PARAMS: dict[str, Any] = {
    "model": "tiny-bert",
    "task": "embed",
    "source": "tiny-bert",
    "max_tokens": None,
    "served_name": "tiny",
    "release": "0.1.0",
    "golden": {"num_texts": 64},
    "shapes": SHAPES,
}


@pytest.fixture(scope="session")
def exported(tiny_model: Path, texts_json: Path, tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, Path]:
    """What the export stage makes of the tiny model."""
    inputs = {"model": tiny_model, "texts.json": texts_json}
    folder = tmp_path_factory.mktemp("exported")
    request = StageRequest(stage="export", subject="a test", params=EXPORT_PARAMS, inputs=inputs, output_dir=folder)
    return stage.run(request).outputs


def body(*, fp8: bool = False, fp16: bool = False) -> Any:
    """A graph made by hand: embedding table and one matrix product, (B, T) -> last_hidden_state (B, T, 64)."""
    from onnx import TensorProto, helper, numpy_helper

    rng = np.random.default_rng(0)
    tables = {"table": (100, 64), "weight": (64, 64)}
    initializers = [numpy_helper.from_array(rng.normal(size=s).astype(np.float32), n) for n, s in tables.items()]
    nodes = [helper.make_node("Gather", ["table", "input_ids"], ["embedded"], name="gather")]
    left, right = "embedded", "weight"
    if fp8:
        initializers += [
            numpy_helper.from_array(np.array(0.05, np.float32), "scale"),
            helper.make_tensor("zero", TensorProto.FLOAT8E4M3FN, [], b"\0", raw=True),
        ]
        for name in ("embedded", "weight"):
            nodes.append(helper.make_node("QuantizeLinear", [name, "scale", "zero"], [f"{name}_q"], name=f"q_{name}"))
            nodes.append(helper.make_node("DequantizeLinear", [f"{name}_q", "scale", "zero"], [f"{name}_dq"]))
        left, right = "embedded_dq", "weight_dq"
    if fp16:
        half, full = TensorProto.FLOAT16, TensorProto.FLOAT
        nodes += [helper.make_node("Cast", [name], [f"{name}_half"], to=half) for name in (left, right)]
        nodes.append(helper.make_node("MatMul", [f"{left}_half", f"{right}_half"], ["product_half"], name="product"))
        nodes.append(helper.make_node("Cast", ["product_half"], ["last_hidden_state"], to=full))
    else:
        nodes.append(helper.make_node("MatMul", [left, right], ["last_hidden_state"], name="product"))
    axes = ["batch_size", "sequence_length"]
    graph = helper.make_graph(
        nodes,
        "by hand",
        [helper.make_tensor_value_info(n, TensorProto.INT64, axes) for n in ("input_ids", "attention_mask")],
        [helper.make_tensor_value_info("last_hidden_state", TensorProto.FLOAT, [*axes, 64])],
        initializers,
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], producer_name="by hand")


def write_onnx(path: Path, **kinds: bool) -> Path:
    """A whole embedding graph made by hand, head included, in a file."""
    from pipelines.export import canonicalize
    from pipelines.recipes import embed

    model = body(**kinds)
    folder = path.parent / "head"
    folder.mkdir(exist_ok=True)
    write_head(folder)
    embed.add_head(model, folder)
    canonicalize(model)
    path.write_bytes(model.SerializeToString(deterministic=True))
    return path


def bf16_product() -> bytes:
    """(2, 8) float32 -> bf16 -> product with bf16 weights -> squared in bf16 -> float32."""
    import ml_dtypes
    from onnx import TensorProto, helper, numpy_helper

    weight = np.random.default_rng(0).normal(size=(8, 4)).astype(np.float32)
    nodes = [
        helper.make_node("Cast", ["x"], ["x16"], to=TensorProto.BFLOAT16),
        helper.make_node("MatMul", ["x16", "weight"], ["product"]),
        helper.make_node("Transpose", ["product"], ["moved"], perm=[1, 0]),
        helper.make_node("Mul", ["moved", "moved"], ["square"]),
        helper.make_node("Cast", ["square"], ["y"], to=TensorProto.FLOAT),
    ]
    graph = helper.make_graph(
        nodes,
        "bf16",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [2, 8])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [4, 2])],
        [numpy_helper.from_array(weight.astype(ml_dtypes.bfloat16), "weight")],
    )
    return bytes(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)]).SerializeToString())
