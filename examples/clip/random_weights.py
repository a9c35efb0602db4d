"""Build a CLIP of real size with random weights, and print what each stage takes."""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import draw
import torch
from train import EOT, make_tokenizer
from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel, CLIPProcessor

# As their authors configured them: (text, vision, width of the common space).
SIZES: dict[str, tuple[dict[str, Any], dict[str, Any], int]] = {
    "vit-b-32": (
        {"hidden_size": 512, "intermediate_size": 2048, "num_hidden_layers": 12, "num_attention_heads": 8},
        {"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12},
        512,
    ),
    "vit-h-14": (
        {
            "hidden_size": 1024,
            "intermediate_size": 4096,
            "num_hidden_layers": 24,
            "num_attention_heads": 16,
            "hidden_act": "gelu",
        },
        {
            "hidden_size": 1280,
            "intermediate_size": 5120,
            "num_hidden_layers": 32,
            "num_attention_heads": 16,
            "patch_size": 14,
            "hidden_act": "gelu",
        },
        1024,
    ),
}
# Few: with random weights they show that a figure is taken, and each costs seconds.
PICTURES = {"golden": 4, "calibration": 4, "test": 8}
# {size}, {precisions}: what was asked for.
MATRIX = """schema_version: 1
models:
  {size}:
    task: clip
    source: ./model
    pictures: ./pictures
    release: "0.1.0"
    shapes: {{min: [1, 1], opt: [8, 16], max: [32, 77]}}
    calibration: {{num_texts: 4, max_tokens: 77}}
    golden: {{num_texts: 32}}
skus:
  l40s:
    {{compute_capability: "8.9", pci_ids: ["26b9"], product: l40s, memory_gib: 48, gpus_per_node: 8,
      precisions: [fp16, bf16, fp8], compiler: tensorrt-rtx}}
  l4:
    {{compute_capability: "8.9", pci_ids: ["27b8"], product: nvidia-l4, memory_gib: 24, gpus_per_node: 8,
      precisions: [fp16, bf16, fp8], compiler: tensorrt-rtx}}
build:
  - models: [{size}]
    skus: [l40s, l4]
    precisions: [{precisions}]
"""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("size", choices=SIZES)
    parser.add_argument("--precisions", default="fp16", help="fp16,bf16")
    parser.add_argument("--folder", type=Path, help="keep everything there; left out: a temporary folder")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        return build(asked.size, asked.precisions, (asked.folder or Path(scratch)).absolute())


def build(size: str, precisions: str, folder: Path) -> int:
    """`enginery build` of such a model, without an image; it prints what every step takes."""
    if not (folder / "model" / "config.json").is_file():
        write_model(size, folder / "model")
    if not (folder / "pictures").is_dir():
        draw.write_pictures(folder / "pictures", 0, PICTURES)
    matrix = folder / "matrix.yaml"
    matrix.write_text(MATRIX.format(size=size, precisions=precisions))
    places = ["--matrix", str(matrix), "--store", str(folder / "store"), "--dist", str(folder / "dist")]
    # One step at a time: two of this size would share the memory that one needs.
    command = [sys.executable, "-m", "pipelines.cli", "build", *places, "--no-image", "--jobs", "1"]
    return subprocess.run(command, cwd=Path(__file__).parents[2], check=False).returncode


def write_model(size: str, folder: Path) -> None:
    """A CLIP folder of that size. Its tokenizer is the small one, whose ids are all among the model's."""
    torch.manual_seed(0)
    text, vision, width = SIZES[size]
    tokenizer = make_tokenizer()
    end = tokenizer.convert_tokens_to_ids(EOT)
    config = CLIPConfig(
        text_config={**text, "projection_dim": width, "bos_token_id": end - 1, "eos_token_id": end},
        vision_config={**vision, "projection_dim": width},
        projection_dim=width,
    )
    model = CLIPModel(config)
    num = {name: sum(weights.numel() for weights in part.parameters()) for name, part in model.named_children()}
    print(
        f"{size}: {sum(num.values()) / 1e6:.0f} million weights, {num['vision_model'] / 1e6:.0f} of them for pictures"
    )
    model.save_pretrained(folder, max_shard_size="2GB")
    CLIPProcessor(image_processor=CLIPImageProcessor(), tokenizer=tokenizer).save_pretrained(folder)


if __name__ == "__main__":
    sys.exit(main())
