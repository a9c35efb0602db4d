"""Train a small CLIP from nothing on pictures it draws, until it names more than nine of ten held-out ones."""

from __future__ import annotations

import argparse
import json
import math
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import draw
import numpy as np
import torch
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers
from transformers import (
    CLIPConfig,
    CLIPImageProcessor,
    CLIPModel,
    CLIPProcessor,
    CLIPTextConfig,
    CLIPTokenizerFast,
    CLIPVisionConfig,
)

HERE = Path(__file__).parent
SOT, EOT = "<|startoftext|>", "<|endoftext|>"
MAX_TOKENS = 32
VOCABULARY = 700  # 2 × 256 bytes, the words of the captions, and what they are merged from
TEMPLATES = ("{}", "a picture of {}", "a drawing with {}")
BATCH = 20  # pictures, no two of one class: each has one right caption
PEAK_RATE, WARM_UP = 5e-4, 0.05  # of AdamW; the share of the steps in which the rate rises
HELD_OUT = 5  # pictures of each class; never drawn in training


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, default=HERE / "model", help="the model's folder")
    parser.add_argument("--pictures", type=Path, default=HERE / "pictures", help="the labelled pictures' folder")
    parser.add_argument("--steps", type=int, default=1500, help=f"each takes {BATCH} pictures")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--min-accuracy", type=float, default=0.9, help="write no model below it")
    asked = parser.parse_args()
    torch.manual_seed(asked.seed)
    started = time.monotonic()
    tokenizer = make_tokenizer()
    model = make_model(tokenizer)
    train(model, tokenizer, asked.steps, asked.seed)
    found = accuracy(model, tokenizer, np.random.default_rng([asked.seed, 1]))
    print(
        f"zero-shot accuracy {found:.1%} on {HELD_OUT * len(draw.SCENES)} held-out pictures of {len(draw.SCENES)} "
        f"classes, after {asked.steps} steps in {time.monotonic() - started:.0f} s"
    )
    if found < asked.min_accuracy:
        print(f"that is below {asked.min_accuracy:.0%}: train longer, with --steps {2 * asked.steps}", file=sys.stderr)
        return 1
    save(model, tokenizer, asked.output)
    draw.write_pictures(asked.pictures, asked.seed)
    print(f"model: {asked.output}\npictures: {asked.pictures}")
    return 0


def make_tokenizer() -> CLIPTokenizerFast:
    """CLIP's own kind: byte-level BPE that marks the ends of words, here learned from the captions."""
    merger = Tokenizer(models.BPE(end_of_word_suffix="</w>"))
    merger.normalizer = normalizers.Lowercase()
    merger.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    trainer = trainers.BpeTrainer(vocab_size=VOCABULARY, end_of_word_suffix="</w>", show_progress=False)
    sentences = [template.format(scene.caption) for template in TEMPLATES for scene in draw.SCENES]
    merger.train_from_iterator(sentences, trainer)
    merges = [tuple(merge) for merge in json.loads(merger.to_str())["model"]["merges"]]
    characters = sorted(pre_tokenizers.ByteLevel.alphabet())
    words = [*characters, *(f"{c}</w>" for c in characters), *("".join(merge) for merge in merges), SOT, EOT]
    with tempfile.TemporaryDirectory() as scratch:
        vocabulary, rules = Path(scratch) / "vocab.json", Path(scratch) / "merges.txt"
        vocabulary.write_text(json.dumps({word: index for index, word in enumerate(dict.fromkeys(words))}))
        rules.write_text("\n".join(["#version: 0.2", *(" ".join(merge) for merge in merges)]) + "\n")
        return CLIPTokenizerFast(str(vocabulary), str(rules), model_max_length=MAX_TOKENS, unk_token=EOT, pad_token=EOT)


def make_model(tokenizer: CLIPTokenizerFast) -> CLIPModel:
    """A ViT with the patches of ViT-B/32, and all else small: about 2.5 million weights."""
    text = CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=128,
        intermediate_size=512,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=MAX_TOKENS,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    vision = CLIPVisionConfig(
        hidden_size=192,
        intermediate_size=768,
        num_hidden_layers=4,
        num_attention_heads=3,
        image_size=draw.TRAINING_PIXELS,
        patch_size=32,
    )
    config = CLIPConfig(text_config=text.to_dict(), vision_config=vision.to_dict(), projection_dim=128)
    return CLIPModel(config)


def train(model: CLIPModel, tokenizer: CLIPTokenizerFast, num_steps: int, seed: int) -> None:
    """CLIP's own loss, on pictures drawn for each step."""
    rng = np.random.default_rng([seed, 0])
    optimizer = torch.optim.AdamW(model.parameters(), lr=PEAK_RATE, betas=(0.9, 0.98), weight_decay=0.01)
    warm_up = max(1, int(WARM_UP * num_steps))
    processor = CLIPImageProcessor()
    model.train()
    for step in range(num_steps):
        rate = min(1.0, (step + 1) / warm_up) * 0.5 * (1 + math.cos(math.pi * step / num_steps))
        for group in optimizer.param_groups:
            group["lr"] = PEAK_RATE * rate
        template = TEMPLATES[int(rng.integers(len(TEMPLATES)))]
        scenes = [draw.SCENES[i] for i in rng.permutation(len(draw.SCENES))[:BATCH]]
        answer = model(
            **captions(tokenizer, scenes, template), pixel_values=pictures(processor, scenes, rng), return_loss=True
        )
        optimizer.zero_grad(set_to_none=True)
        answer.loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        with torch.no_grad():
            model.logit_scale.clamp_(max=math.log(100))
        if step % 100 == 99:
            print(f"step {step + 1} of {num_steps}: loss {answer.loss.item():.3f}", flush=True)
    model.eval()


def captions(tokenizer: CLIPTokenizerFast, scenes: Sequence[draw.Scene], template: str = "{}") -> dict[str, Any]:
    texts = [template.format(scene.caption) for scene in scenes]
    return dict(tokenizer(texts, padding=True, return_tensors="pt"))


def pictures(processor: CLIPImageProcessor, scenes: Sequence[draw.Scene], rng: np.random.Generator) -> torch.Tensor:
    """A picture of each scene, as the processor would give it, only sooner: (N, 3, S, S)."""
    drawn = np.stack([np.asarray(draw.draw(scene, rng, draw.TRAINING_PIXELS)) for scene in scenes])
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (processor.image_mean, processor.image_std))
    return (torch.from_numpy(drawn).permute(0, 3, 1, 2).float() / 255 - mean) / std


def accuracy(model: CLIPModel, tokenizer: CLIPTokenizerFast, rng: np.random.Generator) -> float:
    """How many pictures lie nearest to their own caption."""
    processor, right = CLIPImageProcessor(), 0
    with torch.inference_mode():
        for _ in range(HELD_OUT):
            answer = model(
                **captions(tokenizer, draw.SCENES), pixel_values=pictures(processor, draw.SCENES, rng)
            ).logits_per_image
            right += int((answer.argmax(dim=1) == torch.arange(len(draw.SCENES))).sum())
    return right / (HELD_OUT * len(draw.SCENES))


def save(model: CLIPModel, tokenizer: CLIPTokenizerFast, folder: Path) -> None:
    """A CLIP folder as Transformers writes it; whole, or as it was before."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}-") as scratch:
        made = Path(scratch) / "model"
        model.save_pretrained(made)
        CLIPProcessor(image_processor=CLIPImageProcessor(), tokenizer=tokenizer).save_pretrained(made)
        if folder.exists():
            folder.rename(Path(scratch) / "before")
        made.rename(folder)


if __name__ == "__main__":
    sys.exit(main())
