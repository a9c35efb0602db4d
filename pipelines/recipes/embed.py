"""How the factory treats an embedding model: what sentence-transformers files mean, in graph and reference."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from pipelines.errors import ExportError
from serving.backends.base import Inputs
from serving.profile import ShapeRange
from serving.tasks.embed import EmbedSpec, Encoder, Golden, collate, dump_golden, dump_spec, load_spec

OPTIMUM_TASK = "feature-extraction"
NUM_PROOF_TEXTS = 32
NUM_THREADS = 1  # of the reference: the order of its sums, and so its last bits, depend on their number
MIN_NORM = 1e-12  # torch.nn.functional.normalize's

# sentence-transformers' flag for each pooling that can be written into the graph.
POOLINGS = {
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_cls_token": "cls",
    "pooling_mode_lasttoken": "lasttoken",
}


@dataclass(frozen=True, kw_only=True)
class Head:
    """What follows the Transformer body, as modules.json and its neighbours describe it."""

    pooling: str  # "mean", "cls" or "lasttoken"
    normalize: bool
    query_prefix: str = ""  # "query: "
    passage_prefix: str = ""
    is_assumed: bool = False  # there was no modules.json


def read_head(folder: Path) -> Head:
    """Read a sentence-transformers model's head. Raises ExportError, listing every part that is not supported."""
    modules = _read_json(folder / "modules.json")
    if modules is None:
        # What sentence-transformers does with a bare Transformer, and the norm that cosine search needs.
        return Head(pooling="mean", normalize=True, is_assumed=True)
    problems: list[str] = []
    pooling, normalize = "mean", False
    for module in modules:
        kind = module["type"].rpartition(".")[2]
        if kind == "Pooling":
            config = _read_json(folder / module["path"] / "config.json") or {}
            pooling = _pooling(config, problems, place=f"{module['path']}/config.json")
        elif kind == "Normalize":
            normalize = True
        elif kind != "Transformer":
            problems.append(f"modules.json: a {kind} module is not supported; use a model without it")
    if problems:
        raise ExportError("\n".join([f"{folder.name}:", *(f"  {problem}" for problem in problems)]))
    prompts = (_read_json(folder / "config_sentence_transformers.json") or {}).get("prompts") or {}
    return Head(
        pooling=pooling,
        normalize=normalize,
        query_prefix=prompts.get("query") or "",
        passage_prefix=prompts.get("passage") or prompts.get("document") or "",
    )


def max_tokens_of(folder: Path) -> int:
    """The longest text the model was made for, special tokens included. Raises ExportError when no file says it."""
    limit = (_read_json(folder / "sentence_bert_config.json") or {}).get("max_seq_length")
    if limit:
        return int(limit)
    config = _read_json(folder / "config.json") or {}
    tokenizer = _read_json(folder / "tokenizer_config.json") or {}
    # Some tokenizers say 10**30 for "I do not know"; RoBERTa's positions are two more than its tokens.
    limits = [value for value in (config.get("max_position_embeddings"), tokenizer.get("model_max_length")) if value]
    usable = [int(value) for value in limits if value < 1_000_000]
    if not usable:
        raise ExportError(f"{folder.name}: no file says how many tokens a text may have; set max_tokens in the matrix")
    return min(usable)


def add_head(model: Any, folder: Path) -> None:
    """Append pooling and L2 norm: last_hidden_state (B, T, D), attention_mask (B, T) -> embeddings (B, D), float32."""
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
    last = "embeddings" if not head.normalize else "head/pooled"
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
    if head.normalize:
        norm = node("ReduceL2", [last, one], "head/norm", keepdims=1)
        least = constant("head/min_norm", np.array(MIN_NORM, np.float32))
        node("Div", [last, node("Max", [norm, least], "head/safe_norm")], "embeddings")
    del graph.output[:]
    graph.output.append(helper.make_tensor_value_info("embeddings", TensorProto.FLOAT, ["B", dimension]))


def write_files(
    model: Any, folder: Path, params: Mapping[str, Any], texts: Mapping[str, Any], output_dir: Path
) -> dict[str, Any]:
    """Write tokenizer.json (as it is), task.json, golden.json and proof.json."""
    from transformers import AutoTokenizer

    if not (folder / "tokenizer.json").is_file():
        raise ExportError(
            f"{folder.name}: tokenizer.json is missing, so that no fast tokenizer can read its texts; "
            "make it with AutoTokenizer.from_pretrained(…, use_fast=True).save_pretrained(…)"
        )
    head, raw_tokenizer = read_head(folder), (folder / "tokenizer.json").read_bytes()
    tokenizer = AutoTokenizer.from_pretrained(folder, use_fast=True, trust_remote_code=False, local_files_only=True)
    shapes = msgspec.convert(params["shapes"], ShapeRange)
    spec = EmbedSpec(
        served_name=params["served_name"],
        release=params["release"],
        dimension=model.graph.output[0].type.tensor_type.shape.dim[1].dim_value,
        max_tokens=_max_tokens(folder, params.get("max_tokens"), shapes),
        pad_token_id=tokenizer.pad_token_id or 0,
        input_names=tuple(value.name for value in model.graph.input),
        query_prefix=head.query_prefix,
        passage_prefix=head.passage_prefix,
        shapes=shapes,
    )
    golden_texts = tuple(texts["golden"][: params["golden"]["num_texts"]])
    if len(golden_texts) < params["golden"]["num_texts"]:
        have = len(golden_texts)
        raise ExportError(f"golden.num_texts is {params['golden']['num_texts']}, there are {have}; ask for fewer")
    encodings = tokenizer(list(golden_texts), truncation=True, max_length=spec.max_tokens)["input_ids"]
    _check_encoder(Encoder(raw_tokenizer, spec), golden_texts, encodings)
    golden = Golden(texts=golden_texts, vectors=reference(folder, head, encodings))
    (output_dir / "tokenizer.json").write_bytes(raw_tokenizer)
    (output_dir / "task.json").write_bytes(dump_spec(spec))
    (output_dir / "golden.json").write_bytes(dump_golden(golden))
    (output_dir / "proof.json").write_bytes(dump_golden(_spread(golden, [len(ids) for ids in encodings])))
    return {
        "pooling": head.pooling + (" (assumed: there is no modules.json)" if head.is_assumed else ""),
        "normalize": head.normalize,
        "max_tokens": spec.max_tokens,
        "dimension": spec.dimension,
        "num_golden": len(golden.texts),
    }


def reference(folder: Path, head: Head, encodings: Sequence[Sequence[int]]) -> NDArray[np.float32]:
    """What PyTorch gives in float32, one text at a time so that no padding is involved: N token lists -> (N, D)."""
    import torch
    from transformers import AutoModel

    before = torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()
    torch.set_num_threads(NUM_THREADS)
    torch.use_deterministic_algorithms(True)
    try:
        body = AutoModel.from_pretrained(
            folder, torch_dtype=torch.float32, use_safetensors=True, trust_remote_code=False, local_files_only=True
        ).eval()
        vectors = []
        with torch.inference_mode():
            for ids in encodings:
                tokens = torch.tensor([list(ids)])
                hidden = body(input_ids=tokens, attention_mask=torch.ones_like(tokens)).last_hidden_state[0]
                pooled = {"mean": hidden.mean(dim=0), "cls": hidden[0], "lasttoken": hidden[-1]}[head.pooling]
                if head.normalize:
                    pooled = torch.nn.functional.normalize(pooled, dim=0, eps=MIN_NORM)
                vectors.append(pooled.numpy())
    finally:
        torch.set_num_threads(before[0])
        torch.use_deterministic_algorithms(before[1])
    return np.stack(vectors).astype(np.float32)


def calibration(tokenizer: bytes, task: bytes, texts: Sequence[str], num_texts: int, max_tokens: int) -> list[Inputs]:
    """One text a batch: padding has activations too, and ranges that cover them are wider than any answer needs."""
    spec = load_spec(task)
    short = msgspec.structs.replace(spec, max_tokens=min(max_tokens, spec.max_tokens))
    items = Encoder(tokenizer, short).encode(list(texts[:num_texts]), truncate="END")
    return [collate([item], short) for item in items]


def _pooling(config: Mapping[str, Any], problems: list[str], place: str) -> str:
    asked = [flag for flag, value in config.items() if flag.startswith("pooling_mode_") and value]
    unknown = [flag for flag in asked if flag not in POOLINGS]
    if unknown or len(asked) != 1:
        problems.append(
            f"{place}: pooling {', '.join(asked) or 'of no kind'} is not supported; one of {', '.join(POOLINGS)} is"
        )
    if config.get("include_prompt") is False:
        problems.append(f"{place}: include_prompt: false is not supported; pooling takes in every token")
    return next((POOLINGS[flag] for flag in asked if flag in POOLINGS), "mean")


def _max_tokens(folder: Path, asked: int | None, shapes: ShapeRange) -> int:
    """The limit on one text. A model that could take longer texts than the engines' shapes is held to the shapes."""
    if asked is not None and asked > shapes.max[1]:
        raise ExportError(
            f"max_tokens is {asked}, shapes.max has {shapes.max[1]} tokens; lower the one or raise the other"
        )
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


def _spread(golden: Golden, lengths: Sequence[int]) -> Golden:
    """The golden texts that ship: spread evenly from the shortest to the longest."""
    by_length = sorted(range(len(lengths)), key=lambda i: (lengths[i], i))
    num = min(NUM_PROOF_TEXTS, len(by_length))
    chosen = sorted({by_length[i] for i in np.linspace(0, len(by_length) - 1, num).round().astype(int)})
    return Golden(texts=tuple(golden.texts[i] for i in chosen), vectors=golden.vectors[chosen])


def _read_json(path: Path) -> Any:
    return json.loads(path.read_bytes()) if path.is_file() else None
