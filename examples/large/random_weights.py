"""Build an embedding model of real size with random weights, and print what each step takes and may take."""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from pipelines import stage
from pipelines.build.project import Project
from pipelines.stage import StageRequest

ROOT = Path(__file__).parents[2]
NUM_QUERIES, NUM_PASSAGES = 8, 24  # of the labelled set: it shows that a figure is taken, and each text costs seconds
# {name} and {precisions}: what was asked for; {max_tokens} and {shapes}: of the model.
MATRIX = """schema_version: 1
models:
  {name}:
    task: embed
    source: ./model
    release: "0.1.0"
    max_tokens: {max_tokens}
    shapes: {shapes}
    calibration: {{num_texts: 16, max_tokens: 128}}
    golden: {{num_texts: 32}}
    retrieval: beir:labelled
skus:
  l40s:
    {{compute_capability: "8.9", pci_ids: ["26b9"], product: l40s, memory_gib: 48, gpus_per_node: 8,
      precisions: [fp16, bf16, fp8], compiler: tensorrt-rtx}}
  rtx-5090:
    {{compute_capability: "12.0", pci_ids: ["2b85"], product: rtx-5090, memory_gib: 32, gpus_per_node: 4,
      precisions: [fp16, bf16, fp8], compiler: tensorrt-rtx}}
  cpu: {{cpu_arch: x86_64, precisions: [fp32], compiler: onnx}}
build:
  - {{models: [{name}], skus: [l40s, rtx-5090], precisions: [{precisions}]}}
{generic}
# The figures of random weights say nothing: rows ship if they were built and could be measured.
gates:
  embed:
    fp16: {{max_ndcg_drop: null}}
    fp8: {{min_cosine_mean: null, min_cosine_p1: null, min_cosine_min: null, max_ndcg_drop: null}}
"""
GENERIC = "  - {{models: [{name}], skus: [cpu], precisions: [fp32]}}"


def bert_large(folder: Path, texts: Sequence[str], num_layers: int = 24) -> None:
    """335 million weights, 1.3 GB: the shape of nv-embedqa-e5-v5."""
    from tokenizers import BertWordPieceTokenizer
    from transformers import BertConfig, BertModel, BertTokenizerFast

    trained = BertWordPieceTokenizer()
    trained.train_from_iterator(texts, vocab_size=8000, show_progress=False)
    trained.save_model(str(folder))
    BertTokenizerFast(str(folder / "vocab.txt"), model_max_length=512).save_pretrained(folder)
    config = BertConfig(
        hidden_size=1024, num_hidden_layers=num_layers, num_attention_heads=16, intermediate_size=4096, vocab_size=30522
    )
    save(BertModel(config, add_pooling_layer=False), folder)


def bert_160m(folder: Path, texts: Sequence[str]) -> None:
    """158 million weights, 0.6 GB: as little as is built in the way of large models, for tests."""
    bert_large(folder, texts, num_layers=10)


def llama_1b(folder: Path, texts: Sequence[str]) -> None:
    """1.24 billion weights, 4.9 GB in fp32, in bf16 on disk: the shape of llama-3.2-nv-embedqa-1b."""
    import torch
    from tokenizers import ByteLevelBPETokenizer
    from tokenizers.processors import TemplateProcessing
    from transformers import LlamaConfig, LlamaModel, PreTrainedTokenizerFast

    trained = ByteLevelBPETokenizer()
    first = "<|begin_of_text|>"
    trained.train_from_iterator(texts, vocab_size=8000, special_tokens=[first], show_progress=False)
    trained.post_processor = TemplateProcessing(single=f"{first} $A", special_tokens=[(first, 0)])
    trained.save(str(folder / "trained.json"))
    tokenizer = PreTrainedTokenizerFast(tokenizer_file=str(folder / "trained.json"), model_max_length=8192)
    (folder / "trained.json").unlink()
    tokenizer.save_pretrained(folder)
    config = LlamaConfig(
        hidden_size=2048,
        num_hidden_layers=16,
        num_attention_heads=32,
        num_key_value_heads=8,
        intermediate_size=8192,
        vocab_size=128256,
        max_position_embeddings=131072,
        rope_theta=500000.0,
    )
    torch.set_default_dtype(torch.bfloat16)
    save(LlamaModel(config), folder)
    written = json.loads((folder / "config.json").read_text())
    written |= {"model_type": "llama_bidirec", "architectures": ["LlamaBidirectionalModel"]}
    (folder / "config.json").write_text(json.dumps(written))


MODELS: dict[str, Callable[[Path, Sequence[str]], None]] = {
    "bert-160m": bert_160m,
    "bert-large": bert_large,
    "llama-1b": llama_1b,
}
# (longest text, shapes of the engines), as NVIDIA serves the models that these have the shape of.
TEXTS = {
    "bert-160m": (64, "{min: [1, 1], opt: [8, 64], max: [16, 64]}"),
    "bert-large": (512, "{min: [1, 1], opt: [16, 128], max: [64, 512]}"),
    "llama-1b": (8192, "{min: [1, 1], opt: [4, 512], max: [16, 8192]}"),
}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", choices=MODELS)
    parser.add_argument("--precisions", default="fp16, fp8")
    parser.add_argument("--folder", type=Path, help="keep everything there; left out: a temporary folder")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        return build(asked.model, asked.precisions, (asked.folder or Path(scratch)).absolute())


def build(name: str, precisions: str, folder: Path) -> int:
    """`enginery build` of such a model, without an image; it prints what every step takes."""
    if not (folder / "model" / "config.json").is_file():
        write(name, folder)
    matrix = folder / "matrix.yaml"
    generic = GENERIC.format(name=name) if name != "llama-1b" else ""  # one ONNX file ends at 2 GiB
    max_tokens, shapes = TEXTS[name]
    matrix.write_text(
        MATRIX.format(name=name, precisions=precisions, generic=generic, max_tokens=max_tokens, shapes=shapes)
    )
    places = ["--matrix", str(matrix), "--store", str(folder / "store"), "--dist", str(folder / "dist")]
    # One step at a time: two of this size would share the memory that one needs.
    command = [sys.executable, "-m", "pipelines.cli", "build", *places, "--no-image", "--jobs", "1"]
    code = subprocess.run(command, cwd=ROOT, check=False).returncode
    return code or (0 if within_limits(matrix, folder) else 1)


def within_limits(matrix: Path, folder: Path) -> bool:
    """Print what each step took, and say whether all kept to the limit: 3 x the fp32 weights + 2 GB."""
    project = Project.open(matrix, store=folder / "store", dist=folder / "dist")
    steps = project.graph().steps.values()
    records = [r for step in steps if (r := project.store.latest(step.stage, step.subject)) and r.peak_rss_bytes]
    fp32 = sum(b.size_bytes for r in records if r.stage == "export" for name, b in r.outputs.items() if ".onnx" in name)
    limit = 3 * fp32 + 2e9
    print(f"\nfp32 weights {fp32 / 1e9:.2f} GB; limit of a step: 3 x that + 2 GB = {limit / 1e9:.1f} GB")
    for record in records:
        over = "  OVER" if record.peak_rss_bytes > limit else ""
        size = sum(blob.size_bytes for blob in record.outputs.values())
        print(
            f"{record.stage:9}{record.subject:44}{record.duration_s:8.1f} s {record.peak_rss_bytes / 1e9:6.2f} GB "
            f"{size / 1e6:9.1f} MB{over}"
        )
    return all(record.peak_rss_bytes <= limit for record in records)


def write(name: str, folder: Path) -> None:
    """The model's folder, its tokenizer trained on docstrings, and a small labelled set of them."""
    with tempfile.TemporaryDirectory() as scratch:
        request = StageRequest(stage="texts", subject="any", params={}, inputs={}, output_dir=Path(scratch))
        texts: dict[str, Any] = json.loads(stage.run(request).outputs["texts.json"].read_bytes())
    (folder / "model").mkdir(parents=True, exist_ok=True)
    MODELS[name](folder / "model", texts["calibration"])
    passages = texts["golden"][-NUM_PASSAGES:]
    (folder / "labelled" / "qrels").mkdir(parents=True, exist_ok=True)
    queries = {f"q{n}": " ".join(passage.split()[:6]) for n, passage in enumerate(passages[:NUM_QUERIES])}
    for file, entries in (
        ("corpus.jsonl", {f"p{n}": passage for n, passage in enumerate(passages)}),
        ("queries.jsonl", queries),
    ):
        lines = [json.dumps({"_id": key, "text": text}) for key, text in entries.items()]
        (folder / "labelled" / file).write_text("\n".join(lines) + "\n")
    labels = ["query-id\tcorpus-id\tscore", *(f"q{n}\tp{n}\t1" for n in range(NUM_QUERIES))]
    (folder / "labelled" / "qrels" / "test.tsv").write_text("\n".join(labels) + "\n")


def save(model: Any, folder: Path) -> None:
    print(f"{folder.parent.name}: {sum(weight.numel() for weight in model.parameters()) / 1e6:.0f} million weights")
    model.save_pretrained(folder, safe_serialization=True, max_shard_size="2GB")


if __name__ == "__main__":
    sys.exit(main())
