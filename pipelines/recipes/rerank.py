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
from pipelines.recipes import golden, rerank_head, transformer
from pipelines.recipes.exporter.to_onnx import optimum_onnx
from pipelines.recipes.head_graph import add_node, replace_output
from pipelines.recipes.pooling_head import max_tokens_of
from pipelines.recipes.pytorch import from_pretrained, reproducible
from pipelines.tasks.base import Answers
from serving.contract.profile import ShapeRange
from serving.tasks.base import ONLY, Item
from serving.tasks.rerank import Encoder, GoldenPairs, RerankSpec, dump_golden

OPTIMUM_TASK = "text-classification"
CANDIDATES_PER_QUERY = 4  # of a golden query: mostly near misses, the hard part of the work


def to_onnx(folder: Path, scratch: Path) -> dict[str, Any]:
    """A model folder -> fp32 ONNX: INPUTS or some of them, (B, T) -> scores (B, 1). Raises ExportError."""
    check(folder)
    body = transformer.read_body(folder)
    if body.is_decoder:
        model = transformer.to_onnx(folder, scratch)
        rerank_head.add_head(model, rerank_head.read_decoder_head(folder))
        return {ONLY: model}
    model = optimum_onnx(folder, OPTIMUM_TASK, scratch)
    transformer.soften_masks(model)
    transformer.check_inputs(model, folder, body)
    add_node(model.graph, "Identity", [model.graph.output[0].name], "scores")
    replace_output(model.graph, "scores", 1)
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
        problems.append(f"tokenizer.json: missing, {golden.NO_TOKENIZER}")
    if problems:
        raise ExportError("\n".join([f"{folder.name}:", *(f"  {problem}" for problem in problems)]))


def answers(
    models: Mapping[str, Any], folder: Path, params: Mapping[str, Any], texts: Mapping[str, Any], tokenizer: bytes
) -> Answers:
    """The spec and golden outputs. Raises ExportError."""
    theirs = golden.load_tokenizer(folder)
    shapes = msgspec.convert(params["shapes"], ShapeRange)
    max_tokens = params.get("max_tokens")
    if problem := golden.max_tokens_problem(max_tokens, shapes.max[1]):
        raise ExportError(problem)
    spec = RerankSpec(
        served_name=params["served_name"],
        release=params["release"],
        max_tokens=max_tokens or min(max_tokens_of(folder), shapes.max[1]),
        pad_token_id=theirs.pad_token_id or 0,
        input_names=tuple(value.name for value in models[ONLY].graph.input),
        shapes=shapes,
    )
    pairs = golden_pairs(texts, params["golden"]["num_texts"])
    encoder = Encoder(tokenizer, spec)
    items = [encoder.encode(query, [passage], truncate="END")[0] for query, passage in pairs]
    check_tokens(theirs, pairs, items, spec)
    scores = reference(folder, items, spec)
    proof = golden.spread_by_length([item.shape[-1] for item in items], golden.NUM_PROOF_ITEMS)
    return Answers(
        spec=spec,
        golden=dump_golden(GoldenPairs(pairs=pairs, scores=scores)),
        proof=dump_golden(GoldenPairs(pairs=tuple(pairs[i] for i in proof), scores=scores[proof])),
        facts={
            "max_tokens": spec.max_tokens,
            "num_golden": len(pairs),
            "golden_scores": [round(float(figure(scores)), 4) for figure in (np.min, np.mean, np.max)],
        },
    )


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
    ranking = rerank.search(last, labelled.passages, CANDIDATES_PER_QUERY)
    pairs = [(query, labelled.passages[p]) for query, best in zip(last, ranking, strict=True) for p in best.tolist()]
    return tuple(pairs[:num_pairs])


def reference(folder: Path, items: Sequence[NDArray[np.int64]], spec: RerankSpec) -> NDArray[np.float32]:
    """PyTorch's logits in float32, one pair at a time, without padding: N arrays (2, T) -> (N,)."""
    import torch

    logit = rerank_head.pytorch_logit(folder) if transformer.read_body(folder).is_decoder else _logit(folder, spec)
    with torch.inference_mode(), reproducible():
        return np.array([logit(item) for item in items], dtype=np.float32)


def _logit(folder: Path, spec: RerankSpec) -> Callable[[NDArray[np.int64]], float]:
    import torch
    from transformers import AutoModelForSequenceClassification

    model = from_pretrained(AutoModelForSequenceClassification, folder)

    def logit(item: NDArray[np.int64]) -> float:
        inputs = {"input_ids": item[0], "attention_mask": np.ones_like(item[0]), "token_type_ids": item[1]}
        return float(model(**{name: torch.tensor(inputs[name][None]) for name in spec.input_names}).logits[0, 0])

    return logit


def calibration(encoder: Encoder, tower: str, texts: Sequence[str], params: Mapping[str, Any]) -> Sequence[Item]:
    """Pairs: the first words of a text as the query; that text or the next one, in turn, as the passage."""
    items = []
    for n, text in enumerate(texts):
        query, passage = " ".join(text.split()[:8]), texts[(n + n % 2) % len(texts)]
        items += encoder.encode(query, [passage], truncate="END")
    return items


def check_tokens(
    tokenizer: Any, pairs: Sequence[tuple[str, str]], items: Sequence[NDArray[np.int64]], spec: RerankSpec
) -> None:
    """As golden.check_tokens, of pairs."""
    num_special = tokenizer.num_special_tokens_to_add(pair=True)
    for (query, passage), item in zip(pairs, items, strict=True):
        if len(tokenizer(query, add_special_tokens=False)["input_ids"]) + num_special >= spec.max_tokens:
            continue  # the server cuts the query, which transformers cannot be asked to do
        theirs = tokenizer(
            query, passage, truncation="only_second", max_length=spec.max_tokens, return_token_type_ids=True
        )
        expected = [theirs["input_ids"]]
        if "token_type_ids" in spec.input_names:
            expected.append(theirs["token_type_ids"])
        if item[: len(expected)].tolist() != expected:
            raise ExportError(
                f"tokenizer.json alone gives other tokens than transformers for {query[:40]!r} and {passage[:40]!r}: "
                f"{item[0, :8].tolist()}… and {expected[0][:8]}…; save the tokenizer again with save_pretrained"
            )
