"""Build a CLIP of real size with random weights, stage by stage, and print what each stage takes."""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import draw
import torch
from train import EOT, make_tokenizer
from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel, CLIPProcessor

ROOT = Path(__file__).parents[2]
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
SHAPES = {"min": [1, 1], "opt": [8, 16], "max": [32, 77]}
TOWERS = ("text", "image")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("size", choices=SIZES)
    parser.add_argument("--precision", default="fp16")
    parser.add_argument("--compute-capability", default="8.9")
    parser.add_argument("--folder", type=Path, help="keep everything there; left out: a temporary folder")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        return build(asked, (asked.folder or Path(scratch)).absolute())


def build(asked: argparse.Namespace, folder: Path) -> int:
    write_model(asked.size, folder / "model")
    draw.write_pictures(folder / "pictures", 0, {"golden": 4, "calibration": 4, "test": 8})
    texts = run(folder, "texts", {}, {})["texts.json"]
    params = {"task": "clip", "model": asked.size, "source": "./model", "source_base": str(folder)}
    params |= {"served_name": asked.size, "release": "0.1.0", "max_tokens": None, "shapes": SHAPES}
    params |= {"golden": {"num_texts": 8}, "pictures": "pictures"}
    exported = run(folder, "export", params, {"texts.json": texts})
    graphs = {f"{tower}.onnx": exported[f"{tower}.onnx"] for tower in TOWERS}
    files = {name: exported[name] for name in ("tokenizer.json", "task.json")} | {"texts.json": texts}
    params = {"task": "clip", "precision": asked.precision, "num_texts": 4, "max_tokens": 77}
    params |= {"pictures": "pictures", "source_base": str(folder)}
    typed = run(folder, "quantize", params, {**graphs, **files})
    params = {"task": "clip", "compiler": "tensorrt-rtx", "precision": asked.precision, "shapes": SHAPES}
    params |= {"compute_capability": asked.compute_capability}
    run(folder, "compile", params, {f"{tower}.onnx": typed[f"{tower}.onnx"] for tower in TOWERS})
    return 0


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


def run(folder: Path, stage: str, params: dict[str, Any], inputs: dict[str, str]) -> dict[str, str]:
    """A stage in a process of its own, as `enginery build` runs it; returns its outputs."""
    output_dir = folder / stage / "out"
    output_dir.mkdir(parents=True)
    request = {"stage": stage, "subject": "random", "params": params, "inputs": inputs, "output_dir": str(output_dir)}
    path = output_dir.parent / "request.json"
    path.write_text(json.dumps(request))
    started = time.monotonic()
    child = subprocess.Popen(
        [sys.executable, "-m", "pipelines.stage", str(path)], env={**os.environ, "PYTHONPATH": str(ROOT)}
    )
    _, status, used = os.wait4(child.pid, 0)
    answer = json.loads((output_dir.parent / "result.json").read_text()) if status == 0 else {}
    sizes = {Path(file).name: Path(file).stat().st_size / 1e6 for file in answer.get("outputs", {}).values()}
    large = ", ".join(f"{name} {size:.0f} MB" for name, size in sizes.items() if size > 10)
    print(f"{stage}: {time.monotonic() - started:.1f} s, {used.ru_maxrss / 2**20:.1f} GiB at most; {large}", flush=True)
    if status != 0:
        result = output_dir.parent / "result.json"
        told = json.loads(result.read_text())["error"] if result.is_file() else "it died without an answer"
        raise SystemExit(f"{stage} failed: {told}")
    return dict(answer["outputs"])


if __name__ == "__main__":
    sys.exit(main())
