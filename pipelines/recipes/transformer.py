"""The Transformer body in a model folder: how PyTorch loads it, and how its hidden states become ONNX."""

from __future__ import annotations

import functools
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pipelines.errors import ExportError
from pipelines.recipes.exporter.to_onnx import optimum_onnx, torch_onnx
from pipelines.recipes.pytorch import from_pretrained

# The inputs that the server can give an engine; a graph that takes more cannot be served.
INPUTS = ("input_ids", "attention_mask", "token_type_ids")
OPTIMUM_TASK = "feature-extraction"
# Decoders whose attention takes a mask made here. Optimum's graphs for them want position_ids, and see only backwards.
DECODERS = ("llama", "mistral", "qwen2", "qwen3")
# Types that no release of transformers knows, because their code comes with the model, which is never run
# -> what they are made of: these have the base's weights, and attention to both sides.
BIDIRECTIONAL = {"llama_bidirec": "llama"}
# Their table of positions begins behind the pad token's id: 514 rows are for 512 tokens.
OFFSET_POSITIONS = ("camembert", "mpnet", "roberta", "xlm-roberta", "xlm-roberta-xl")
# Added to the scores of masked tokens: exp() of it is 0 in every format. transformers adds the least float32, which is
# -inf in fp16: the softmax of a token that sees nothing (in a window that holds only padding) is then NaN.
MASKED = -30_000.0
LEAST_FP16 = -65_504.0


@dataclass(frozen=True, kw_only=True)
class Body:
    """What config.json says of a body that must be known before its weights are read."""

    model_type: str  # as transformers knows it: "llama"
    is_decoder: bool  # exported by this module; others by Optimum
    is_causal: bool  # tokens see only what stands before them
    max_positions: int | None  # tokens it has positions for, or can attend to at once


def read_body(folder: Path) -> Body:
    """Read config.json. Raises ExportError."""
    path = folder / "config.json"
    if not path.is_file():
        raise ExportError(f"{folder.name}: config.json: missing; this is not a Transformers model folder")
    config = json.loads(path.read_bytes())
    own_type = str(config.get("model_type") or "")
    model_type = BIDIRECTIONAL.get(own_type, own_type)
    is_decoder = model_type in DECODERS
    says_both_ways = config.get("is_causal") is False or config.get("use_bidirectional_attention") is True
    return Body(
        model_type=model_type,
        is_decoder=is_decoder,
        is_causal=is_decoder and own_type not in BIDIRECTIONAL and not says_both_ways,
        max_positions=_max_positions(config, model_type),
    )


def load(folder: Path) -> Any:
    """The body in float32, ready to run. No code from the folder is run. Raises ExportError."""
    from transformers import AutoConfig, AutoModel

    body = read_body(folder)
    fields = json.loads((folder / "config.json").read_bytes())
    if fields.get("model_type") not in BIDIRECTIONAL:
        return from_pretrained(AutoModel, folder)
    known = {key: value for key, value in fields.items() if key not in ("model_type", "auto_map")}
    return from_pretrained(AutoModel, folder, config=AutoConfig.for_model(body.model_type, **known))


class Original:
    """The body as PyTorch runs it: what exported graphs are compared with."""

    def __init__(self, folder: Path) -> None:
        self._body, self._model = read_body(folder), load(folder)

    def hidden_state(self, ids: Sequence[int]) -> Any:
        """The last hidden state of one text, (T, H), of a batch without padding; to be called in reproducible()."""
        import torch

        tokens = torch.tensor([list(ids)])
        if not self._body.is_decoder:
            return self._model(input_ids=tokens, attention_mask=torch.ones_like(tokens)).last_hidden_state[0]
        # None is transformers' own causal mask; zeros, added to the scores, let every token see all.
        mask = None if self._body.is_causal else torch.zeros(1, 1, len(ids), len(ids))
        return self._model(input_ids=tokens, attention_mask=mask, use_cache=False).last_hidden_state[0]


def to_onnx(folder: Path, scratch: Path) -> Any:
    """A folder -> `onnx.ModelProto` in float32: INPUTS or some of them, (B, T) -> last_hidden_state (B, T, D).

    scratch: an empty folder. Raises ExportError.
    """
    body = read_body(folder)
    model = _decoder_onnx(folder, body, scratch) if body.is_decoder else optimum_onnx(folder, OPTIMUM_TASK, scratch)
    soften_masks(model)
    check_inputs(model, folder, body)
    return model


def check_inputs(model: Any, folder: Path, body: Body) -> None:
    """Raise ExportError for a graph that takes more than INPUTS."""
    unknown = [value.name for value in model.graph.input if value.name not in INPUTS]
    if unknown:
        raise ExportError(
            f"{folder.name}: its graph asks for {', '.join(unknown)}, the server gives {', '.join(INPUTS)}; "
            f"'{body.model_type}' models are not supported"
        )


def soften_masks(model: Any) -> None:
    """Put MASKED where a graph masks with what fp16 cannot hold. In place."""
    from onnx import numpy_helper

    graph = model.graph
    users: dict[str, set[str]] = {}
    for node in graph.node:
        for name in node.input:
            users.setdefault(name, set()).add(node.op_type)
    constants = [(tensor.name, tensor) for tensor in graph.initializer]
    constants += [
        (n.output[0], a.t) for n in graph.node if n.op_type == "Constant" for a in n.attribute if a.HasField("t")
    ]
    for name, tensor in constants:
        is_mask = not list(tensor.dims) and users.get(name, set()) <= {"Where", "Mul"}
        if tensor.data_type == tensor.FLOAT and is_mask and numpy_helper.to_array(tensor) < LEAST_FP16:
            tensor.CopyFrom(numpy_helper.from_array(np.array(MASKED, np.float32), tensor.name))


def _decoder_onnx(folder: Path, body: Body, scratch: Path) -> Any:
    """Traced by PyTorch with the mask made in the graph: padding is not seen, nor what comes later if it is causal."""
    import torch

    model = load(folder)
    for module in model.modules():
        if hasattr(module, "variance_epsilon"):  # LlamaRMSNorm and those like it
            module.forward = functools.partial(_rms_norm, module)

    class Masked(torch.nn.Module):  # type: ignore[misc]  # torch is not typed here
        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def forward(self, input_ids: Any, attention_mask: Any) -> Any:
            is_seen = attention_mask[:, None, None, :] > 0  # (B, 1, 1, T)
            if body.is_causal:
                place = torch.arange(input_ids.shape[1])
                is_seen = is_seen & (place[None, :] <= place[:, None])  # (B, 1, T, T)
            mask = torch.where(is_seen, 0.0, MASKED)
            return self.model(input_ids=input_ids, attention_mask=mask, use_cache=False).last_hidden_state

    ids = torch.ones(2, 7, dtype=torch.int64)
    inputs, output = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}, "last_hidden_state"
    axes = {name: {0: "B", 1: "T"} for name in (*inputs, output)}
    exported = torch_onnx(Masked(), inputs, output, axes, scratch / "body.onnx", scratch)
    shape = exported.graph.output[0].type.tensor_type.shape
    for dim, name in zip(shape.dim, ("B", "T"), strict=False):
        dim.dim_param = name
    shape.dim[2].dim_value = model.config.hidden_size
    return exported


def _rms_norm(module: Any, hidden: Any) -> Any:
    """What an RMSNorm module gives, (…, H) -> (…, H), written so that fp16 holds every number on the way.

    Decoders have single components in the thousands; the square of 256 is already inf.
    """
    import torch

    scale = hidden.abs().amax(dim=-1, keepdim=True).clamp(min=1.0)
    small = hidden / scale
    variance = (small * small).mean(dim=-1, keepdim=True) + module.variance_epsilon / scale / scale
    return module.weight * (small * torch.rsqrt(variance))


def _max_positions(config: dict[str, Any], model_type: str) -> int | None:
    """The longest text, special tokens included, that the body can be given."""
    limits = [config.get("max_position_embeddings")]
    if model_type in OFFSET_POSITIONS and limits[0]:
        limits = [limits[0] - config.get("pad_token_id", 1) - 1]
    if model_type == "mistral" or config.get("use_sliding_window"):
        limits.append(config.get("sliding_window"))  # the mask made here has no window
    return min((int(limit) for limit in limits if limit), default=None)
