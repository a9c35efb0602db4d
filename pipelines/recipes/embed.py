"""How the factory treats an embedding model: its head in the graph, its reference, and the files a server needs."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from pipelines.errors import ExportError
from pipelines.onnx_graph.edit import add_constant
from pipelines.recipes import golden, transformer
from pipelines.recipes.head_graph import AXIS_1, add_node, append_pooling, replace_output
from pipelines.recipes.pooling_head import Head, matryoshka_of, max_tokens_of, read_head
from pipelines.recipes.pytorch import reproducible
from pipelines.tasks.base import Answers
from serving.contract.profile import ShapeRange
from serving.tasks.base import ONLY, Item
from serving.tasks.embed import EmbedSpec, Encoder, Golden, dump_golden

MIN_NORM = 1e-12  # torch.nn.functional.normalize's


def to_onnx(folder: Path, scratch: Path) -> dict[str, Any]:
    """A model folder -> the one tower's fp32 ONNX, head included. Raises ExportError."""
    read_head(folder)  # refuses an unsupported head before the body is exported, which takes minutes
    model = transformer.to_onnx(folder, scratch)
    add_head(model, folder)
    return {ONLY: model}


def add_head(model: Any, folder: Path) -> None:
    """Append pooling, Dense and L2 norm: last_hidden_state (B, T, H), attention_mask (B, T) -> embeddings (B, D)."""
    head, graph = read_head(folder), model.graph
    dimension = graph.output[0].type.tensor_type.shape.dim[2].dim_value
    outputs = ["head/pooled", *(f"head/dense_{i}" for i in range(len(head.dense))), "head/normalized"]
    outputs = outputs[: 1 + len(head.dense) + head.normalize]
    outputs[-1] = "embeddings"
    last = append_pooling(graph, head.pooling, outputs.pop(0))
    for i, dense in enumerate(head.dense):
        weight = add_constant(graph, f"head/weight_{i}", dense.weight)
        bias = add_constant(graph, f"head/bias_{i}", dense.bias)
        product = add_node(graph, "Gemm", [last, weight, bias], f"head/product_{i}", transB=1)
        last, dimension = add_node(graph, dense.activation, [product], outputs.pop(0)), len(dense.bias)
    if head.normalize:
        norm = add_node(graph, "ReduceL2", [last, AXIS_1], "head/norm", keepdims=1)
        least = add_constant(graph, "head/min_norm", np.array(MIN_NORM, np.float32))
        add_node(graph, "Div", [last, add_node(graph, "Max", [norm, least], "head/safe_norm")], outputs.pop(0))
    replace_output(graph, "embeddings", dimension)


def answers(
    models: Mapping[str, Any], folder: Path, params: Mapping[str, Any], texts: Mapping[str, Any], tokenizer: bytes
) -> Answers:
    """The spec and golden outputs. Raises ExportError."""
    graph, head, theirs = models[ONLY].graph, read_head(folder), golden.load_tokenizer(folder)
    shapes = msgspec.convert(params["shapes"], ShapeRange)
    dimension = graph.output[0].type.tensor_type.shape.dim[1].dim_value
    spec = EmbedSpec(
        served_name=params["served_name"],
        release=params["release"],
        dimension=dimension,
        max_tokens=_max_tokens(folder, params.get("max_tokens"), shapes),
        pad_token_id=theirs.pad_token_id or 0,
        input_names=tuple(value.name for value in graph.input),
        query_prefix=head.query_prefix,
        passage_prefix=head.passage_prefix,
        shapes=shapes,
        matryoshka_dimensions=matryoshka_of(folder, dimension, params.get("matryoshka")),
    )
    num_texts = params["golden"]["num_texts"]
    chosen = tuple(texts["golden"][:num_texts])
    if len(chosen) < num_texts:
        raise ExportError(f"golden.num_texts is {num_texts}, there are {len(chosen)}; ask for fewer")
    encodings = theirs(list(chosen), truncation=True, max_length=spec.max_tokens)["input_ids"]
    golden.check_tokens(chosen, Encoder(tokenizer, spec).encode(chosen, truncate="END"), encodings)
    _check_case(folder, theirs)
    # Without prefixes, as the proof at the server's start embeds them: it gives no input_type.
    vectors = reference(folder, head, encodings)
    spec = msgspec.structs.replace(spec, int8_range=_int8_range(vectors))
    proof = golden.spread_by_length([len(ids) for ids in encodings], golden.NUM_PROOF_ITEMS)
    return Answers(
        spec=spec,
        golden=dump_golden(Golden(texts=chosen, vectors=vectors)),
        proof=dump_golden(Golden(texts=tuple(chosen[i] for i in proof), vectors=vectors[proof])),
        facts={
            "pooling": head.pooling + (" (assumed: there is no modules.json)" if head.is_assumed else ""),
            "num_dense": len(head.dense),
            "normalize": head.normalize,
            "prefixes": [spec.query_prefix, spec.passage_prefix],
            "matryoshka_dimensions": list(spec.matryoshka_dimensions),
            "int8_range": spec.int8_range,
            "max_tokens": spec.max_tokens,
            "dimension": spec.dimension,
            "num_golden": len(chosen),
        },
    )


def reference(folder: Path, head: Head, encodings: Sequence[Sequence[int]]) -> NDArray[np.float32]:
    """PyTorch's vectors in float32, one text at a time, without padding: N token lists -> (N, D)."""
    import torch

    body, vectors = transformer.Original(folder), []
    with torch.inference_mode(), reproducible():
        for ids in encodings:
            hidden = body.hidden_state(ids)
            vector = {"mean": hidden.mean(dim=0), "cls": hidden[0], "lasttoken": hidden[-1]}[head.pooling]
            for dense in head.dense:
                vector = torch.nn.functional.linear(vector, torch.tensor(dense.weight), torch.tensor(dense.bias))
                vector = vector.tanh() if dense.activation == "Tanh" else vector
            if head.normalize:
                vector = torch.nn.functional.normalize(vector, dim=0, eps=MIN_NORM)
            vectors.append(vector.numpy())
    return np.stack(vectors).astype(np.float32)


def calibration(encoder: Encoder, tower: str, texts: Sequence[str], params: Mapping[str, Any]) -> Sequence[Item]:
    """Texts with the prefix of a passage, which is what an index is made of."""
    return encoder.encode(texts, truncate="END", input_type="passage")


def _max_tokens(folder: Path, max_tokens: int | None, shapes: ShapeRange) -> int:
    """The limit on one text. A model that could take longer texts than the engines' shapes is held to the shapes."""
    if problem := golden.max_tokens_problem(max_tokens, shapes.max[1]):
        raise ExportError(problem)
    positions = transformer.read_body(folder).max_positions
    if max_tokens is not None and positions is not None and max_tokens > positions:
        raise ExportError(f"max_tokens is {max_tokens}, {folder.name} can take {positions} tokens; lower max_tokens")
    return max_tokens or min(max_tokens_of(folder), shapes.max[1])


def _check_case(folder: Path, tokenizer: Any) -> None:
    """sentence-transformers can lower a text before the tokenizer sees it; the server knows the tokenizer only."""
    path, mixed = folder / "sentence_bert_config.json", "The Ångström of A File"
    if not path.is_file() or not json.loads(path.read_bytes()).get("do_lower_case"):
        return
    if tokenizer(mixed)["input_ids"] != tokenizer(mixed.lower())["input_ids"]:
        raise ExportError(
            f"{folder.name}: {path.name}: do_lower_case is true, and the tokenizer keeps capitals; "
            "put a Lowercase normalizer into tokenizer.json"
        )


def _int8_range(vectors: NDArray[np.float32]) -> float:
    """The largest component, up to 6 digits, never rounded down: what 127 stands for in int8 vectors."""
    return math.ceil(float(np.abs(vectors).max()) * 1e6) / 1e6
