"""How the factory treats a reranker: a cross-encoder with one logit, its reference, and the files a server needs."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from pipelines.datasets import rerank, retrieval
from pipelines.errors import ExportError
from pipelines.recipes import rerank_head, transformer
from pipelines.recipes.pooling_head import max_tokens_of
from pipelines.recipes.to_onnx import optimum_onnx
from serving.backends.base import Inputs
from serving.contract.profile import ShapeRange
from serving.tasks.base import ONLY
from serving.tasks.rerank import Encoder, GoldenPairs, RerankSpec, dump_golden

TOWERS = (ONLY,)
OPTIMUM_TASK = "text-classification"
NUM_PROOF_PAIRS = 32
CANDIDATES_PER_QUERY = 4  # of a golden query: mostly near misses, the hard part of the work


def to_onnx(folder: Path, scratch: Path) -> dict[str, Any]:
    """A model folder -> fp32 ONNX: INPUTS or some of them, (B, T) -> scores (B, 1). Raises ExportError."""
    from onnx import TensorProto, helper

    check(folder)
    body = transformer.read_body(folder)
    if body.is_decoder:
        model = transformer.to_onnx(folder, scratch)
        rerank_head.add_head(model, rerank_head.read_decoder_head(folder))
        return {ONLY: model}
    model = optimum_onnx(folder, OPTIMUM_TASK, scratch)
    transformer.soften_masks(model)
    graph = model.graph
    unknown = [value.name for value in graph.input if value.name not in transformer.INPUTS]
    if unknown:
        raise ExportError(
            f"{folder.name}: its graph asks for {', '.join(unknown)}, the server gives "
            f"{', '.join(transformer.INPUTS)}; '{body.model_type}' models are not supported"
        )
    graph.node.append(helper.make_node("Identity", [graph.output[0].name], ["scores"], name="head/scores"))
    del graph.output[:]
    graph.output.append(helper.make_tensor_value_info("scores", TensorProto.FLOAT, ["B", 1]))
    return {ONLY: model}


def check(folder: Path) -> None:
    """Raise ExportError, listing everything that keeps a folder from being a reranker."""
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES

    model_type = transformer.read_body(folder).model_type
    config, problems = json.loads((folder / "config.json").read_bytes()), []
    if model_type not in CONFIG_MAPPING_NAMES:
        problems.append(
            f"config.json: transformers has no model_type '{model_type}', and code that comes with a model "
            "(trust_remote_code) is never run; use a model whose architecture is part of transformers"
        )
    labels = len(config.get("id2label") or {}) or int(config.get("num_labels", 2))  # 2: transformers' default
    if labels != 1:
        problems.append(
            f"config.json: the head has {labels} labels; a reranker has one (num_labels=1 when it is trained)"
        )
    if not any(name.endswith("ForSequenceClassification") for name in config.get("architectures") or []):
        problems.append(
            "config.json: architectures names no …ForSequenceClassification; this is no cross-encoder, "
            "use task: embed for a model that gives vectors"
        )
    pooling = config.get("pooling", "avg")
    if model_type in transformer.DECODERS and pooling not in rerank_head.POOLINGS:
        problems.append(
            f"config.json: pooling {pooling!r} is not supported; one of {', '.join(rerank_head.POOLINGS)} is"
        )
    if not (folder / "tokenizer.json").is_file():
        problems.append(
            "tokenizer.json: missing, so that no fast tokenizer can read its texts; "
            "make it with AutoTokenizer.from_pretrained(…, use_fast=True).save_pretrained(…)"
        )
    if problems:
        raise ExportError("\n".join([f"{folder.name}:", *(f"  {problem}" for problem in problems)]))


def write_files(
    models: Mapping[str, Any], folder: Path, params: Mapping[str, Any], texts: Mapping[str, Any], output_dir: Path
) -> dict[str, Any]:
    """Write tokenizer.json (as it is), task.json, golden.json and proof.json."""
    from transformers import AutoTokenizer

    raw_tokenizer = (folder / "tokenizer.json").read_bytes()
    tokenizer = AutoTokenizer.from_pretrained(folder, use_fast=True, trust_remote_code=False, local_files_only=True)
    shapes = msgspec.convert(params["shapes"], ShapeRange)
    asked = params.get("max_tokens")
    if asked is not None and asked > shapes.max[1]:
        raise ExportError(
            f"max_tokens is {asked}, shapes.max has {shapes.max[1]} tokens; lower the one or raise the other"
        )
    spec = RerankSpec(
        served_name=params["served_name"],
        release=params["release"],
        max_tokens=asked or min(max_tokens_of(folder), shapes.max[1]),
        pad_token_id=tokenizer.pad_token_id or 0,
        input_names=tuple(value.name for value in models[ONLY].graph.input),
        shapes=shapes,
    )
    pairs = golden_pairs(texts, params["golden"]["num_texts"])
    encoder = Encoder(raw_tokenizer, spec)
    items = [encoder.encode(query, [passage], truncate="END")[0] for query, passage in pairs]
    _check_tokens(tokenizer, pairs, items, spec)
    golden = GoldenPairs(pairs=pairs, scores=reference(folder, items, spec))
    (output_dir / "tokenizer.json").write_bytes(raw_tokenizer)
    (output_dir / "task.json").write_bytes(spec.dump())
    (output_dir / "golden.json").write_bytes(dump_golden(golden))
    (output_dir / "proof.json").write_bytes(dump_golden(_spread(golden, [item.shape[-1] for item in items])))
    return {
        "max_tokens": spec.max_tokens,
        "num_golden": len(pairs),
        "golden_scores": [round(float(figure(golden.scores)), 4) for figure in (np.min, np.mean, np.max)],
    }


def golden_pairs(texts: Mapping[str, Any], num_pairs: int) -> tuple[tuple[str, str], ...]:
    """Queries of the labelled set with BM25's best passages: from the end, which the gate's ranking does not use."""
    labelled = retrieval.parse(texts["retrieval"])
    num_queries = -(-num_pairs // CANDIDATES_PER_QUERY)
    if num_queries > len(labelled.queries):
        raise ExportError(
            f"golden.num_texts is {num_pairs}, there are {len(labelled.queries) * CANDIDATES_PER_QUERY} pairs; "
            "ask for fewer"
        )
    last = labelled.queries[-num_queries:]
    found = rerank.search(last, labelled.passages, CANDIDATES_PER_QUERY)
    pairs = [(query, labelled.passages[p]) for query, row in zip(last, found, strict=True) for p in row.tolist()]
    return tuple(pairs[:num_pairs])


def reference(folder: Path, items: Sequence[NDArray[np.int64]], spec: RerankSpec) -> NDArray[np.float32]:
    """What PyTorch gives in float32, one pair at a time so that no padding is involved: N arrays (2, T) -> (N,)."""
    import torch

    logit = rerank_head.pytorch_logit(folder) if transformer.read_body(folder).is_decoder else _logit(folder, spec)
    with torch.inference_mode(), transformer.reproducible():
        return np.array([logit(item) for item in items], dtype=np.float32)


def _logit(folder: Path, spec: RerankSpec) -> Callable[[NDArray[np.int64]], float]:
    import torch
    from transformers import AutoModelForSequenceClassification

    model, told = AutoModelForSequenceClassification.from_pretrained(
        folder,
        dtype=torch.float32,
        attn_implementation="eager",
        use_safetensors=True,
        trust_remote_code=False,
        local_files_only=True,
        output_loading_info=True,
    )
    if told["missing_keys"]:  # transformers makes up what it does not find
        missing = sorted(told["missing_keys"])
        raise ExportError(
            f"{folder.name}: {len(missing)} weights are in no .safetensors file, the first is {missing[0]}; "
            "they would be random numbers: get the model's files again, or train its head"
        )
    model.eval()

    def logit(item: NDArray[np.int64]) -> float:
        given = {"input_ids": item[0], "attention_mask": np.ones_like(item[0]), "token_type_ids": item[1]}
        return float(model(**{name: torch.tensor(given[name][None]) for name in spec.input_names}).logits[0, 0])

    return logit


def calibration(
    tower: str,
    tokenizer: bytes,
    task: bytes,
    texts: Sequence[str],
    num_texts: int,
    max_tokens: int,
    params: Mapping[str, Any],
) -> list[Inputs]:
    """One pair a batch: the first words of a text as the query, that text or the next one as the passage."""
    spec = RerankSpec.load(task)
    short = msgspec.structs.replace(spec, max_tokens=min(max_tokens, spec.max_tokens))
    encoder, (tower_of_pairs,) = Encoder(tokenizer, short), short.towers
    batches = []
    for n in range(num_texts):
        query, passage = " ".join(texts[n].split()[:8]), texts[(n + n % 2) % num_texts]
        batches.append(tower_of_pairs.collate(encoder.encode(query, [passage], truncate="END")))
    return batches


def _check_tokens(
    tokenizer: Any, pairs: Sequence[tuple[str, str]], items: Sequence[NDArray[np.int64]], spec: RerankSpec
) -> None:
    """The server reads tokenizer.json alone; some models keep settings elsewhere, and would be served wrong."""
    num_special = tokenizer.num_special_tokens_to_add(pair=True)
    for (query, passage), item in zip(pairs, items, strict=True):
        if len(tokenizer(query, add_special_tokens=False)["input_ids"]) + num_special >= spec.max_tokens:
            continue  # the server cuts the query, which transformers cannot be asked to do
        theirs = tokenizer(
            query, passage, truncation="only_second", max_length=spec.max_tokens, return_token_type_ids=True
        )
        rows = [theirs["input_ids"]]
        if "token_type_ids" in spec.input_names:
            rows.append(theirs["token_type_ids"])
        if item[: len(rows)].tolist() != rows:
            raise ExportError(
                f"tokenizer.json alone gives other tokens than transformers for {query[:40]!r} and {passage[:40]!r}: "
                f"{item[0, :8].tolist()}… and {rows[0][:8]}…; save the tokenizer again with save_pretrained"
            )


def _spread(golden: GoldenPairs, lengths: Sequence[int]) -> GoldenPairs:
    """The golden pairs that ship: spread evenly from the shortest to the longest."""
    order = sorted(range(len(lengths)), key=lambda i: (lengths[i], i))
    num = min(NUM_PROOF_PAIRS, len(order))
    chosen = sorted({order[i] for i in np.linspace(0, len(order) - 1, num).round().astype(int)})
    return GoldenPairs(pairs=tuple(golden.pairs[i] for i in chosen), scores=golden.scores[chosen])
