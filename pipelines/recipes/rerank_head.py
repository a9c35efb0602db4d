"""What turns a decoder's hidden states into a reranker's logit: read from its folder, in ONNX and in PyTorch."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipelines.errors import ExportError
from pipelines.recipes import transformer

# What config.json of a llama_bidirec model calls them. Other decoders' …ForSequenceClassification reads the last token.
POOLINGS = {"avg": "mean", "cls": "cls", "last": "lasttoken"}


@dataclass(frozen=True, kw_only=True)
class DecoderHead:
    """What turns a decoder's hidden states into a logit: pooled @ weight.T / temperature."""

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
    from onnx import TensorProto, helper, numpy_helper

    graph, hidden = model.graph, model.graph.output[0].name

    def node(op: str, inputs: Sequence[str], output: str, **attributes: Any) -> str:
        graph.node.append(helper.make_node(op, inputs, [output], name=f"head/{output}", **attributes))
        return output

    def constant(name: str, values: NDArray[Any]) -> str:
        graph.initializer.append(numpy_helper.from_array(values, name))
        return name

    one = constant("head/axis_1", np.array([1], np.int64))
    if head.pooling == "cls":
        pooled = node("Gather", [hidden, constant("head/first", np.array(0, np.int64))], "head/pooled", axis=1)
    elif head.pooling == "lasttoken":
        # (B, 1) positions into (B, T, H): texts are padded on the right.
        count = node("ReduceSum", ["attention_mask", one], "head/num_tokens", keepdims=1)
        pooled = node("GatherND", [hidden, node("Sub", [count, one], "head/last")], "head/pooled", batch_dims=1)
    else:
        mask = node("Cast", ["attention_mask"], "head/mask", to=TensorProto.FLOAT)
        wide = node("Unsqueeze", [mask, constant("head/axis_2", np.array([2], np.int64))], "head/mask_3d")
        total = node("ReduceSum", [node("Mul", [hidden, wide], "head/kept"), one], "head/sum", keepdims=0)
        pooled = node("Div", [total, node("ReduceSum", [mask, one], "head/num_tokens", keepdims=1)], "head/pooled")
    node("Gemm", [pooled, constant("head/weight", head.weight / np.float32(head.temperature))], "scores", transB=1)
    del graph.output[:]
    graph.output.append(helper.make_tensor_value_info("scores", TensorProto.FLOAT, ["B", 1]))


def pytorch_logit(folder: Path) -> Callable[[NDArray[np.int64]], float]:
    """What PyTorch gives for one pair, (2, T): what the graph is compared with."""
    import torch

    original, head = transformer.Original(folder), read_decoder_head(folder)
    weight = torch.tensor(head.weight[0])

    def logit(item: NDArray[np.int64]) -> float:
        hidden = original.hidden_state(item[0].tolist())  # (T, H)
        pooled = {"mean": hidden.mean(0), "cls": hidden[0], "lasttoken": hidden[-1]}[head.pooling]
        return float(pooled @ weight / head.temperature)

    return logit
