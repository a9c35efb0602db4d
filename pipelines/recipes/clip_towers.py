"""A CLIP model in PyTorch: its two towers as graphs with pooling, projection and norm, and its own answers."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipelines.errors import ExportError
from pipelines.recipes.exporter.to_onnx import torch_onnx
from pipelines.recipes.pytorch import from_pretrained, reproducible

MASKED = -1e4  # added to a score: its exponential is 0 in float32, and the number is finite in float16


def to_onnx(folder: Path, scratch: Path) -> Mapping[str, Any]:
    """input_ids, attention_mask (B, T) -> text (B, D); pixel_values (B, 3, S, S) -> image (B, D); all of norm 1."""
    import torch

    model = load(folder)
    config = model.config
    side, dimension = config.vision_config.image_size, config.projection_dim
    tokens = torch.tensor([[config.text_config.eos_token_id] * 3] * 2)
    text = {"input_ids": tokens, "attention_mask": torch.ones_like(tokens)}
    image = {"pixel_values": torch.zeros(2, 3, side, side)}
    with reproducible():
        return {
            "text": _export(_text_tower(model), text, {0: "B", 1: "T"}, dimension, scratch, "text"),
            "image": _export(_image_tower(model), image, {0: "B"}, dimension, scratch, "image"),
        }


def text_reference(model: Any, items: Sequence[NDArray[Any]]) -> NDArray[np.float32]:
    """PyTorch's vectors in float32, one text at a time, without padding: N items (T,) -> (N, D)."""
    import torch

    with reproducible(), torch.inference_mode():
        vectors = []
        for item in items:
            tokens = torch.from_numpy(np.asarray(item, dtype=np.int64))[None]
            vectors.append(model.get_text_features(input_ids=tokens, attention_mask=torch.ones_like(tokens)))
        return np.asarray(torch.nn.functional.normalize(torch.cat(vectors), dim=-1).numpy(), dtype=np.float32)


def image_reference(model: Any, items: Sequence[NDArray[np.float32]]) -> NDArray[np.float32]:
    """As text_reference: N items (3, S, S) -> (N, D)."""
    import torch

    with reproducible(), torch.inference_mode():
        vectors = [model.get_image_features(pixel_values=torch.from_numpy(item)[None]) for item in items]
        return np.asarray(torch.nn.functional.normalize(torch.cat(vectors), dim=-1).numpy(), dtype=np.float32)


def load(folder: Path) -> Any:
    """The CLIPModel of a folder, ready to run. Raises ExportError."""
    from transformers import CLIPModel

    kind = json.loads((folder / "config.json").read_bytes()).get("model_type")
    if kind != "clip":
        raise ExportError(f"{folder.name}: config.json says model_type {kind!r}; the task clip takes 'clip' models")
    if not list(folder.glob("*.safetensors")):
        raise ExportError(f"{folder.name}: there is no *.safetensors file; save the model with save_pretrained(…)")
    return from_pretrained(CLIPModel, folder, unused="logit_scale")


def _text_tower(clip: Any) -> Any:
    """The text tower as one module, with one mask that is finite in every precision."""
    import torch

    config = clip.config.text_config

    class TextTower(torch.nn.Module):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.text, self.projection = clip.text_model, clip.text_projection
            longest = config.max_position_embeddings
            self.register_buffer("causal", torch.ones(longest, longest, dtype=torch.bool).tril(), persistent=False)

        def forward(self, input_ids: Any, attention_mask: Any) -> Any:
            length = input_ids.shape[1]
            allowed = self.causal[:length, :length] & attention_mask.bool()[:, None, None, :]
            scores = torch.where(allowed, 0.0, MASKED)
            states = self.text.encoder(
                inputs_embeds=self.text.embeddings(input_ids=input_ids), attention_mask=scores
            ).last_hidden_state
            # Where the text ends. Old configurations give 2 as the id; then it is the largest id of the vocabulary.
            ids = input_ids.int()
            end = (ids if config.eos_token_id == 2 else (ids == config.eos_token_id).int()).argmax(dim=-1)
            position = end[:, None, None].expand(-1, 1, config.hidden_size)
            pooled = self.text.final_layer_norm(states.gather(1, position).squeeze(1))
            return torch.nn.functional.normalize(self.projection(pooled), dim=-1)

    return TextTower().eval()


def _image_tower(clip: Any) -> Any:
    """The image tower as one module. Transformers' own has a cast that makes OpenVINO rename its input."""
    import torch

    class ImageTower(torch.nn.Module):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.vision, self.projection = clip.vision_model, clip.visual_projection

        def forward(self, pixel_values: Any) -> Any:
            parts = self.vision.embeddings
            patches = parts.patch_embedding(pixel_values).flatten(2).transpose(1, 2)
            first = parts.class_embedding.expand(pixel_values.shape[0], 1, -1)
            states = torch.cat([first, patches], dim=1) + parts.position_embedding.weight
            states = self.vision.encoder(inputs_embeds=self.vision.pre_layrnorm(states)).last_hidden_state
            return torch.nn.functional.normalize(self.projection(self.vision.post_layernorm(states[:, 0])), dim=-1)

    return ImageTower().eval()


def _export(
    module: Any, inputs: Mapping[str, Any], axes: Mapping[int, str], dimension: int, scratch: Path, tower: str
) -> Any:
    """A module -> `onnx.ModelProto`, externalized if it is large. Raises ExportError."""
    import torch

    (scratch / tower).mkdir()
    dynamic_axes = {**dict.fromkeys(inputs, axes), "embeddings": {0: "B"}}
    with torch.inference_mode():
        model = torch_onnx(module, inputs, "embeddings", dynamic_axes, scratch / tower / "model.onnx", scratch)
    # The exporter names this axis after a node.
    model.graph.output[0].type.tensor_type.shape.dim[1].dim_value = dimension
    return model
