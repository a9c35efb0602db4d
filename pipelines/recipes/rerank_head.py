"""The head that turns a decoder's hidden states into a reranker's logit: its weights, in ONNX and in PyTorch."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipelines.errors import ExportError
from pipelines.onnx_graph.edit import add_constant
from pipelines.recipes import transformer
from pipelines.recipes.head_graph import add_node, append_pooling, replace_output

# What config.json of a llama_bidirec model calls them. Other decoders' …ForSequenceClassification reads the last token.
POOLINGS = {"avg": "mean", "cls": "cls", "last": "lasttoken"}


@dataclass(frozen=True, kw_only=True)
class DecoderHead:
    """A decoder's logit is pooled @ weight.T / temperature."""

    pooling: str  # "mean", "cls" or "lasttoken"
    weight: NDArray[np.float32]  # (1, H)
    temperature: float


def read_decoder_head(folder: Path) -> DecoderHead:
    """The head of a decoder's …ForSequenceClassification. Raises ExportError."""
    from safetensors import safe_open

    config = json.loads((folder / "config.json").read_bytes())
    is_bidirectional = config.get("model_type") in transformer.BIDIRECTIONAL
    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(path, framework="pt") as file:  # NumPy has no bf16
            if "score.weight" in file.keys():  # noqa: SIM118  # no dict
                return DecoderHead(
                    pooling=POOLINGS[config.get("pooling", "avg")] if is_bidirectional else "lasttoken",
                    weight=file.get_tensor("score.weight").float().numpy(),
                    temperature=float(config.get("temperature", 1.0)) if is_bidirectional else 1.0,
                )
    raise ExportError(
        f"{folder.name}: score.weight is in no .safetensors file: the head would be random numbers; "
        "get the model's files again"
    )


def add_head(model: Any, head: DecoderHead) -> None:
    """Append pooling and logit: last_hidden_state (B, T, H), attention_mask (B, T) -> scores (B, 1). In place."""
    graph = model.graph
    pooled = append_pooling(graph, head.pooling, "head/pooled", last_position="head/last")
    weight = add_constant(graph, "head/weight", head.weight / np.float32(head.temperature))
    add_node(graph, "Gemm", [pooled, weight], "scores", transB=1)
    replace_output(graph, "scores", 1)


def pytorch_logit(folder: Path) -> Callable[[NDArray[np.int64]], float]:
    """PyTorch's logit of one pair, (2, T): the graph is compared with it."""
    import torch

    original, head = transformer.Original(folder), read_decoder_head(folder)
    weight = torch.tensor(head.weight[0])

    def logit(item: NDArray[np.int64]) -> float:
        hidden = original.hidden_state(item[0].tolist())  # (T, H)
        pooled = {"mean": hidden.mean(0), "cls": hidden[0], "lasttoken": hidden[-1]}[head.pooling]
        return float(pooled @ weight / head.temperature)

    return logit
