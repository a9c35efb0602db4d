"""The exported ONNX answers as the original does; what ships beside it, and which models are refused."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest

from pipelines.errors import ExportError
from pipelines.export import canonicalize
from pipelines.recipes import embed, pooling_head
from serving.tasks.embed import EmbedSpec, Encoder, load_golden
from tests.support.families import write_head
from tests.support.models import EXPORT_PARAMS, RunStage, body


def _session(model: onnx.ModelProto | Path) -> onnxruntime.InferenceSession:
    data = model.read_bytes() if isinstance(model, Path) else model.SerializeToString()
    return onnxruntime.InferenceSession(data, providers=["CPUExecutionProvider"])


@pytest.mark.parametrize("pooling", sorted(pooling_head.POOLINGS))
@pytest.mark.parametrize("normalize", [True, False])
def test_the_head_pools_only_what_the_mask_keeps(tmp_path: Path, pooling: str, normalize: bool) -> None:
    write_head(tmp_path, pooling, normalize=normalize)
    model = body()
    table, weight = (onnx.numpy_helper.to_array(tensor) for tensor in model.graph.initializer[:2])
    embed.add_head(model, tmp_path)
    canonicalize(model)
    ids, mask = np.array([[5, 6, 7, 0], [8, 0, 0, 0]]), np.array([[1, 1, 1, 0], [1, 0, 0, 0]])
    [found] = _session(model).run(None, {"input_ids": ids, "attention_mask": mask})

    hidden = [table[row[kept == 1]] @ weight for row, kept in zip(ids, mask, strict=True)]
    pooled = {"mean": lambda h: h.mean(0), "cls": lambda h: h[0], "lasttoken": lambda h: h[-1]}[
        pooling_head.POOLINGS[pooling]
    ]
    expected = np.stack([pooled(h) for h in hidden])
    if normalize:
        expected /= np.linalg.norm(expected, axis=1, keepdims=True)
    np.testing.assert_allclose(found, expected, atol=1e-5, rtol=1e-5)


def test_the_axes_are_called_b_and_t_and_the_answer_embeddings(tmp_path: Path) -> None:
    write_head(tmp_path)
    model = body()
    model.graph.node[0].doc_string = "made in /somewhere"
    embed.add_head(model, tmp_path)
    canonicalize(model)
    axes = {
        value.name: [dim.dim_param or dim.dim_value for dim in value.type.tensor_type.shape.dim]
        for value in (*model.graph.input, *model.graph.output)
    }
    assert axes == {"input_ids": ["B", "T"], "attention_mask": ["B", "T"], "embeddings": ["B", 64]}
    assert b"/somewhere" not in model.SerializeToString()


@pytest.mark.slow
def test_the_exported_model_answers_as_the_original_does(exported: Mapping[str, Path]) -> None:
    spec = EmbedSpec.load(exported["task.json"].read_bytes())
    golden = load_golden(exported["golden.json"].read_bytes())
    items = Encoder(exported["tokenizer.json"].read_bytes(), spec).encode(golden.texts, truncate="END")
    session = _session(exported["model.onnx"])
    [alone] = session.run(None, dict(spec.towers[0].collate(items[5:6])))
    [together] = session.run(None, dict(spec.towers[0].collate(items)))
    np.testing.assert_allclose((together * golden.vectors).sum(axis=1), 1, atol=1e-5)
    np.testing.assert_allclose(alone[0], together[5], atol=1e-5)
    assert np.ptp(golden.vectors @ golden.vectors.T) > 0.1, "all texts look alike: nothing was tested"


@pytest.mark.slow
def test_the_task_file_holds_what_the_server_must_know(exported: Mapping[str, Path], tiny_model: Path) -> None:
    spec = EmbedSpec.load(exported["task.json"].read_bytes())
    assert (spec.dimension, spec.max_tokens, spec.pad_token_id) == (64, 64, 0)
    assert (spec.query_prefix, spec.passage_prefix) == ("query: ", "passage: ")
    assert spec.input_names == ("input_ids", "attention_mask", "token_type_ids")
    assert exported["tokenizer.json"].read_bytes() == (tiny_model / "tokenizer.json").read_bytes()


@pytest.mark.slow
def test_nothing_is_left_in_the_folder_but_the_outputs(exported: Mapping[str, Path]) -> None:
    folder = exported["model.onnx"].parent
    assert sorted(path.name for path in folder.iterdir()) == sorted(exported)


def test_a_task_without_a_recipe_is_refused(run_stage: RunStage) -> None:
    with pytest.raises(ExportError, match=r"task 'paint' has no recipe; there is one for .*embed"):
        run_stage("export", {**EXPORT_PARAMS, "task": "paint"})


@pytest.mark.slow
def test_two_exports_in_two_folders_give_the_same_bytes(
    exported: Mapping[str, Path], tiny_model: Path, texts_json: Path, run_stage_afresh: Callable[..., dict[str, Any]]
) -> None:
    copy = texts_json.parent / "a copy of the model"
    shutil.copytree(tiny_model, copy, dirs_exist_ok=True)
    inputs = {"model": copy, "texts.json": texts_json}
    answer = run_stage_afresh("export", EXPORT_PARAMS, inputs, "elsewhere", cpu=0)
    assert answer["exit_code"] == 0, answer
    for name, path in exported.items():
        again = Path(answer["outputs"][name])
        assert hashlib.sha256(again.read_bytes()).digest() == hashlib.sha256(path.read_bytes()).digest(), name
