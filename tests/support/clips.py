"""A tiny CLIP of random weights as Transformers writes it, and the pictures that examples/clip draws."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

from tests.support.models import ROOT

SIDE, DIMENSION, MAX_TOKENS = 64, 24, 40
SHAPES = {"min": [1, 1], "opt": [2, 8], "max": [6, MAX_TOKENS]}


def save_clip(folder: Path, seed: int, *, eos_token_id: int | None = None, **processing: Any) -> None:
    """A CLIP folder as Transformers writes it: two layers a tower, and a tokenizer that knows single bytes."""
    import torch
    from tokenizers.pre_tokenizers import ByteLevel
    from transformers import (
        CLIPConfig,
        CLIPImageProcessor,
        CLIPModel,
        CLIPProcessor,
        CLIPTextConfig,
        CLIPTokenizerFast,
        CLIPVisionConfig,
    )

    torch.manual_seed(seed)
    folder.mkdir(parents=True)
    letters = sorted(ByteLevel.alphabet())
    words = [*letters, *(f"{letter}</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    (folder / "vocab.json").write_text(json.dumps({word: index for index, word in enumerate(words)}))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    tokenizer = CLIPTokenizerFast(
        str(folder / "vocab.json"), str(folder / "merges.txt"), model_max_length=MAX_TOKENS, unk_token="<|endoftext|>"
    )
    small = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    text = CLIPTextConfig(
        **small,
        vocab_size=len(words),
        max_position_embeddings=MAX_TOKENS,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id if eos_token_id is None else eos_token_id,
    )
    vision = CLIPVisionConfig(**small, image_size=SIDE, patch_size=32)
    config = CLIPConfig(
        text_config=text.to_dict(), vision_config=vision.to_dict(), projection_dim=DIMENSION, initializer_factor=4.0
    )
    CLIPModel(config).save_pretrained(folder)
    shown = {"size": {"shortest_edge": SIDE}, "crop_size": {"height": SIDE, "width": SIDE}, **processing}
    CLIPProcessor(image_processor=CLIPImageProcessor(**shown), tokenizer=tokenizer).save_pretrained(folder)


def draw() -> ModuleType:
    spec = importlib.util.spec_from_file_location("draw", ROOT / "examples" / "clip" / "draw.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["draw"] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module
