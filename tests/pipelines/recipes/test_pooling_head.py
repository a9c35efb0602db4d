"""The pooling head of a sentence-transformers folder: what is read, assumed and refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from safetensors.numpy import load_file

from pipelines.errors import ExportError
from pipelines.export import canonicalize
from pipelines.recipes import embed
from pipelines.recipes.pooling_head import ACTIVATIONS, matryoshka_of, max_tokens_of, read_head
from tests.support.families import rewrite, write_dense, write_head
from tests.support.models import body

TANH, IDENTITY = ACTIVATIONS
XLM_R = {"model_type": "xlm-roberta", "max_position_embeddings": 514, "pad_token_id": 1}


def _write(folder: Path, **files: Any) -> None:
    """Write JSON files, named without their ending."""
    for name, content in files.items():
        (folder / f"{name}.json").write_text(json.dumps(content))


def test_every_part_of_a_head_that_is_not_supported_is_listed(tmp_path: Path) -> None:
    write_head(tmp_path, "pooling_mode_max_tokens")
    modules = json.loads((tmp_path / "modules.json").read_text())
    modules.append({"idx": 3, "name": "3", "path": "3_LSTM", "type": "sentence_transformers.models.LSTM"})
    _write(tmp_path, modules=modules, config_sentence_transformers={"default_prompt_name": "sts"})
    with pytest.raises(ExportError, match="pooling pooling_mode_max_tokens is not supported") as error:
        read_head(tmp_path)
    assert "a LSTM module is not supported" in str(error.value)
    assert "default_prompt_name is 'sts', prompts has none" in str(error.value)


def test_pooling_without_the_prompts_tokens_is_refused(tmp_path: Path) -> None:
    write_head(tmp_path)
    rewrite(tmp_path / "1_Pooling" / "config.json", {"include_prompt": False})
    with pytest.raises(ExportError, match="include_prompt: false is not supported"):
        read_head(tmp_path)


@pytest.mark.parametrize(("written", "pooling"), [("lasttoken", "lasttoken"), ("cls", "cls"), ("mean", "mean")])
def test_pooling_may_be_written_as_newer_releases_do(tmp_path: Path, written: str, pooling: str) -> None:
    write_head(tmp_path)
    (tmp_path / "1_Pooling" / "config.json").write_text(json.dumps({"pooling_mode": written}))
    assert read_head(tmp_path).pooling == pooling
    (tmp_path / "1_Pooling" / "config.json").write_text(json.dumps({"pooling_mode": "max"}))
    with pytest.raises(ExportError, match="pooling max is not supported"):
        read_head(tmp_path)


def test_a_bare_transformer_is_pooled_by_its_mean_and_says_that_this_was_assumed(tmp_path: Path) -> None:
    head = read_head(tmp_path)
    assert (head.pooling, head.normalize, head.is_assumed) == ("mean", True, True)


@pytest.mark.parametrize(("written", "pooling"), [("avg", "mean"), ("cls", "cls"), ("last", "lasttoken")])
def test_a_bare_transformer_may_name_its_pooling_in_its_config(tmp_path: Path, written: str, pooling: str) -> None:
    _write(tmp_path, config={"model_type": "llama_bidirec", "pooling": written})
    assert read_head(tmp_path).pooling == pooling


def test_a_pooling_in_the_config_that_is_not_known_is_refused(tmp_path: Path) -> None:
    _write(tmp_path, config={"pooling": "weighted_avg"})
    with pytest.raises(ExportError, match="pooling 'weighted_avg' is not supported; one of avg, cls, last is"):
        read_head(tmp_path)


@pytest.mark.parametrize(
    ("config", "query", "passage"),
    [
        ({"prompts": {"query": "query: ", "passage": "passage: "}}, "query: ", "passage: "),
        (
            {"prompts": {"query": "search_query: ", "document": "search_document: "}},
            "search_query: ",
            "search_document: ",
        ),
        ({"prompts": {"query": "Q: ", "document": "", "passage": "P: "}}, "Q: ", "P: "),
        ({"prompts": {"query": "Q: ", "document": None}}, "Q: ", ""),
        ({"prompts": {"query": "Q: "}, "default_prompt_name": None}, "Q: ", ""),
        ({"prompts": {"sts": "Same? "}, "default_prompt_name": "sts"}, "Same? ", "Same? "),
        ({"prompts": {"query": "Q: ", "sts": "Same? "}, "default_prompt_name": "sts"}, "Q: ", "Same? "),
        ({"prompts": {"query": "Q: ", "document": ""}, "default_prompt_name": "query"}, "Q: ", ""),
        ({}, "", ""),
    ],
)
def test_prefixes_are_the_models_prompts(tmp_path: Path, config: dict[str, Any], query: str, passage: str) -> None:
    _write(tmp_path, config_sentence_transformers=config)
    head = read_head(tmp_path)
    assert (head.query_prefix, head.passage_prefix) == (query, passage)


@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize("activations", [(TANH,), (IDENTITY, TANH)])
def test_dense_modules_are_products_behind_the_pooling(
    tmp_path: Path, activations: tuple[str, ...], normalize: bool
) -> None:
    write_head(tmp_path, dense=activations, normalize=normalize)
    last = f"{1 + len(activations)}_Dense"
    write_dense(tmp_path / last, activations[-1], num_out=48)
    model = body()
    table, weight = (onnx.numpy_helper.to_array(tensor) for tensor in model.graph.initializer[:2])
    embed.add_head(model, tmp_path)
    canonicalize(model)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    [found] = session.run(None, {"input_ids": np.array([[5, 6, 0]]), "attention_mask": np.array([[1, 1, 0]])})

    expected = (table[[5, 6]] @ weight).mean(axis=0)
    for i, activation in enumerate(activations):
        tensors = load_file(tmp_path / f"{2 + i}_Dense" / "model.safetensors")
        expected = tensors["linear.weight"] @ expected + tensors["linear.bias"]
        expected = np.tanh(expected) if activation == TANH else expected
    assert session.get_outputs()[0].shape == ["B", 48]
    np.testing.assert_allclose(found[0], expected / np.linalg.norm(expected) if normalize else expected, atol=1e-5)


def test_dense_weights_in_a_pickle_are_never_opened(tmp_path: Path) -> None:
    write_head(tmp_path, dense=[TANH])
    folder = tmp_path / "2_Dense"
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(ExportError, match=r"is never opened: convert it with safetensors.torch.save_file"):
        read_head(tmp_path)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (
            {"activation_function": "torch.nn.modules.activation.GELU"},
            "activation torch.nn.modules.activation.GELU is not",
        ),
        ({"module_input_name": "token_embeddings"}, "a Dense module for token_embeddings is not supported"),
    ],
)
def test_a_dense_module_of_another_kind_is_refused(tmp_path: Path, changes: dict[str, str], words: str) -> None:
    write_head(tmp_path, dense=[TANH])
    rewrite(tmp_path / "2_Dense" / "config.json", changes)
    with pytest.raises(ExportError, match=words):
        read_head(tmp_path)


def test_modules_in_another_order_are_refused(tmp_path: Path) -> None:
    write_head(tmp_path, dense=[TANH])
    modules = json.loads((tmp_path / "modules.json").read_text())
    _write(tmp_path, modules=[modules[0], modules[2], modules[1], modules[3]])
    with pytest.raises(ExportError, match="only the order Transformer, Pooling, Dense, Normalize is supported"):
        read_head(tmp_path)


@pytest.mark.parametrize(
    ("files", "limit"),
    [
        ({"sentence_bert_config": {"max_seq_length": 256}, "config": {"max_position_embeddings": 512}}, 256),
        ({"config": {"max_position_embeddings": 514}, "tokenizer_config": {"model_max_length": 512}}, 512),
        ({"config": {"max_position_embeddings": 512}, "tokenizer_config": {"model_max_length": 1e30}}, 512),
        ({"config": XLM_R}, 512),
        ({"sentence_bert_config": {"max_seq_length": 514}, "config": XLM_R}, 512),
        ({"config": {"model_type": "mistral", "max_position_embeddings": 32768, "sliding_window": 4096}}, 4096),
        ({"config": {"model_type": "qwen2", "max_position_embeddings": 32768, "sliding_window": 4096}}, 32768),
    ],
)
def test_the_token_limit_is_what_the_models_files_say(tmp_path: Path, files: dict[str, Any], limit: int) -> None:
    _write(tmp_path, **files)
    assert max_tokens_of(tmp_path) == limit


def test_a_model_that_does_not_say_its_token_limit_asks_for_it(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="set max_tokens in the matrix"):
        max_tokens_of(tmp_path)


@pytest.mark.parametrize(
    ("told", "asked", "expected"),
    [
        (None, None, ()),
        (None, False, ()),
        (None, True, (32, 64, 128, 256, 384)),
        ([256, 128], None, (128, 256, 384)),
        ([256, 128], True, (128, 256, 384)),
        ([256, 128], False, ()),
    ],
)
def test_matryoshka_lengths_are_the_models_or_powers_of_two(
    tmp_path: Path, told: list[int] | None, asked: bool | None, expected: tuple[int, ...]
) -> None:
    _write(tmp_path, config={"matryoshka_dimensions": told})
    assert matryoshka_of(tmp_path, 384, asked) == expected


def test_a_matryoshka_length_beyond_the_vector_is_refused(tmp_path: Path) -> None:
    _write(tmp_path, config={"matryoshka_dimensions": [256, 768]})
    with pytest.raises(ExportError, match="matryoshka_dimensions has 768, vectors have 384 numbers"):
        matryoshka_of(tmp_path, 384, None)
