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
from pipelines.recipes import transformer
from pipelines.recipes.pooling_head import Head, matryoshka_of, max_tokens_of, read_head
from serving.backends.base import Inputs
from serving.contract.profile import ShapeRange
from serving.tasks.base import ONLY
from serving.tasks.embed import EmbedSpec, Encoder, Golden, dump_golden

TOWERS: tuple[str, ...] = (ONLY,)
NUM_PROOF_TEXTS = 32
MIN_NORM = 1e-12  # torch.nn.functional.normalize's


def to_onnx(folder: Path, scratch: Path) -> dict[str, Any]:
    """A model folder -> the one tower's fp32 ONNX, head included. Raises ExportError."""
    read_head(folder)  # a head that is not supported is told before the body is exported, which takes minutes
    model = transformer.to_onnx(folder, scratch)
    add_head(model, folder)
    return {ONLY: model}


def add_head(model: Any, folder: Path) -> None:
    """Append pooling, Dense and L2 norm: last_hidden_state (B, T, H), attention_mask (B, T) -> embeddings (B, D)."""
    from onnx import TensorProto, helper, numpy_helper

    head, graph = read_head(folder), model.graph
    hidden = graph.output[0]
    dimension = hidden.type.tensor_type.shape.dim[2].dim_value

    def node(op: str, inputs: Sequence[str], output: str, **attributes: Any) -> str:
        graph.node.append(helper.make_node(op, inputs, [output], name=f"head/{output}", **attributes))
        return output

    def constant(name: str, values: NDArray[Any]) -> str:
        graph.initializer.append(numpy_helper.from_array(values, name))
        return name

    one = constant("head/axis_1", np.array([1], np.int64))
    answers = ["head/pooled", *(f"head/dense_{i}" for i in range(len(head.dense))), "head/normalized"]
    answers = answers[: 1 + len(head.dense) + head.normalize]
    answers[-1] = "embeddings"
    last = answers.pop(0)
    if head.pooling == "cls":
        first = constant("head/first", np.array(0, np.int64))
        node("Gather", [hidden.name, first], last, axis=1)
    elif head.pooling == "lasttoken":
        # (B, 1) positions into (B, T, D): texts are padded on the right.
        count = node("ReduceSum", ["attention_mask", one], "head/num_tokens", keepdims=1)
        position = node("Sub", [count, one], "head/last_position")
        node("GatherND", [hidden.name, position], last, batch_dims=1)
    else:
        mask = node("Cast", ["attention_mask"], "head/mask", to=TensorProto.FLOAT)
        wide = node("Unsqueeze", [mask, constant("head/axis_2", np.array([2], np.int64))], "head/mask_3d")
        kept = node("Mul", [hidden.name, wide], "head/kept")
        total = node("ReduceSum", [kept, one], "head/sum", keepdims=0)
        node("Div", [total, node("ReduceSum", [mask, one], "head/num_tokens", keepdims=1)], last)
    for i, dense in enumerate(head.dense):
        weight, bias = constant(f"head/weight_{i}", dense.weight), constant(f"head/bias_{i}", dense.bias)
        product = node("Gemm", [last, weight, bias], f"head/product_{i}", transB=1)
        last, dimension = node(dense.activation, [product], answers.pop(0)), len(dense.bias)
    if head.normalize:
        norm = node("ReduceL2", [last, one], "head/norm", keepdims=1)
        least = constant("head/min_norm", np.array(MIN_NORM, np.float32))
        node("Div", [last, node("Max", [norm, least], "head/safe_norm")], answers.pop(0))
    del graph.output[:]
    graph.output.append(helper.make_tensor_value_info("embeddings", TensorProto.FLOAT, ["B", dimension]))


def write_files(
    models: Mapping[str, Any], folder: Path, params: Mapping[str, Any], texts: Mapping[str, Any], output_dir: Path
) -> dict[str, Any]:
    """Write tokenizer.json (as it is), task.json, golden.json and proof.json."""
    from transformers import AutoTokenizer

    if not (folder / "tokenizer.json").is_file():
        raise ExportError(
            f"{folder.name}: tokenizer.json is missing, so that no fast tokenizer can read its texts; "
            "make it with AutoTokenizer.from_pretrained(…, use_fast=True).save_pretrained(…)"
        )
    model, head, raw_tokenizer = models[ONLY], read_head(folder), (folder / "tokenizer.json").read_bytes()
    tokenizer = AutoTokenizer.from_pretrained(folder, use_fast=True, trust_remote_code=False, local_files_only=True)
    shapes = msgspec.convert(params["shapes"], ShapeRange)
    dimension = model.graph.output[0].type.tensor_type.shape.dim[1].dim_value
    spec = EmbedSpec(
        served_name=params["served_name"],
        release=params["release"],
        dimension=dimension,
        max_tokens=_max_tokens(folder, params.get("max_tokens"), shapes),
        pad_token_id=tokenizer.pad_token_id or 0,
        input_names=tuple(value.name for value in model.graph.input),
        query_prefix=head.query_prefix,
        passage_prefix=head.passage_prefix,
        shapes=shapes,
        matryoshka_dimensions=matryoshka_of(folder, dimension, params.get("matryoshka")),
    )
    golden_texts = tuple(texts["golden"][: params["golden"]["num_texts"]])
    if len(golden_texts) < params["golden"]["num_texts"]:
        have = len(golden_texts)
        raise ExportError(f"golden.num_texts is {params['golden']['num_texts']}, there are {have}; ask for fewer")
    encodings = tokenizer(list(golden_texts), truncation=True, max_length=spec.max_tokens)["input_ids"]
    _check_encoder(Encoder(raw_tokenizer, spec), golden_texts, encodings)
    _check_case(folder, tokenizer)
    # Without prefixes, as the proof at the server's start embeds them: it gives no input_type.
    golden = Golden(texts=golden_texts, vectors=reference(folder, head, encodings))
    spec = msgspec.structs.replace(spec, int8_range=_int8_range(golden))
    (output_dir / "tokenizer.json").write_bytes(raw_tokenizer)
    (output_dir / "task.json").write_bytes(spec.dump())
    (output_dir / "golden.json").write_bytes(dump_golden(golden))
    (output_dir / "proof.json").write_bytes(dump_golden(_spread(golden, [len(ids) for ids in encodings])))
    return {
        "pooling": head.pooling + (" (assumed: there is no modules.json)" if head.is_assumed else ""),
        "num_dense": len(head.dense),
        "normalize": head.normalize,
        "prefixes": [spec.query_prefix, spec.passage_prefix],
        "matryoshka_dimensions": list(spec.matryoshka_dimensions),
        "int8_range": spec.int8_range,
        "max_tokens": spec.max_tokens,
        "dimension": spec.dimension,
        "num_golden": len(golden.texts),
    }


def reference(folder: Path, head: Head, encodings: Sequence[Sequence[int]]) -> NDArray[np.float32]:
    """What PyTorch gives in float32, one text at a time so that no padding is involved: N token lists -> (N, D)."""
    import torch

    body, vectors = transformer.Original(folder), []
    with torch.inference_mode(), transformer.reproducible():
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


def calibration(
    tower: str,
    tokenizer: bytes,
    task: bytes,
    texts: Sequence[str],
    num_texts: int,
    max_tokens: int,
    params: Mapping[str, Any],
) -> list[Inputs]:
    """One text a batch: padding has activations too, and ranges that cover them are wider than any answer needs.

    With the prefix of a passage, which is what an index is made of.
    """
    spec = EmbedSpec.load(task)
    short = msgspec.structs.replace(spec, max_tokens=min(max_tokens, spec.max_tokens))
    items = Encoder(tokenizer, short).encode(list(texts[:num_texts]), truncate="END", input_type="passage")
    return [short.towers[0].collate([item]) for item in items]


def _max_tokens(folder: Path, asked: int | None, shapes: ShapeRange) -> int:
    """The limit on one text. A model that could take longer texts than the engines' shapes is held to the shapes."""
    if asked is not None and asked > shapes.max[1]:
        raise ExportError(
            f"max_tokens is {asked}, shapes.max has {shapes.max[1]} tokens; lower the one or raise the other"
        )
    positions = transformer.read_body(folder).max_positions
    if asked is not None and positions is not None and asked > positions:
        raise ExportError(f"max_tokens is {asked}, {folder.name} can take {positions} tokens; lower max_tokens")
    return asked or min(max_tokens_of(folder), shapes.max[1])


def _check_encoder(encoder: Encoder, texts: Sequence[str], encodings: Sequence[Sequence[int]]) -> None:
    """The server reads tokenizer.json alone; some models keep settings elsewhere, and would be served wrong."""
    served = encoder.encode(texts, truncate="END")
    for text, ours, theirs in zip(texts, served, encodings, strict=True):
        if ours.tolist() != list(theirs):
            raise ExportError(
                f"tokenizer.json alone gives other tokens than transformers for {text[:60]!r}: {ours[:8].tolist()}… "
                f"and {list(theirs[:8])}…; save the tokenizer again with save_pretrained, so that it is complete"
            )


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


def _int8_range(golden: Golden) -> float:
    """The largest component, up to 6 digits, never rounded down: what 127 stands for in int8 vectors."""
    return math.ceil(float(np.abs(golden.vectors).max()) * 1e6) / 1e6


def _spread(golden: Golden, lengths: Sequence[int]) -> Golden:
    """The golden texts that ship: spread evenly from the shortest to the longest."""
    by_length = sorted(range(len(lengths)), key=lambda i: (lengths[i], i))
    num = min(NUM_PROOF_TEXTS, len(by_length))
    chosen = sorted({by_length[i] for i in np.linspace(0, len(by_length) - 1, num).round().astype(int)})
    return Golden(texts=tuple(golden.texts[i] for i in chosen), vectors=golden.vectors[chosen])
