"""Measure an embedding engine: cosine to the fp32 reference, retrieval on a labelled set, batch invariance."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipelines.datasets import retrieval
from pipelines.errors import GateError
from pipelines.measure import speed
from pipelines.measure.runner import (
    SCHEMA_VERSION,
    Items,
    Rows,
    Runner,
    cut,
    is_reference,
    open_runner,
    realized,
    rounded,
    unit,
)
from pipelines.onnx_graph import external_data
from pipelines.stage import StageRequest, StageResult
from serving.contract.profile import Precision
from serving.tasks import embed
from serving.tasks.base import Tower

# Of queries and passages, in the engine's vectors and the reference's alike. 64 tokens tell docstrings apart, and
# an fp8 graph takes a millisecond a token here; a person's own set is read further.
RETRIEVAL_MAX_TOKENS, BEIR_MAX_TOKENS = 64, 256
INVARIANCE_TEXTS, INVARIANCE_BATCH, INVARIANCE_MAX_TOKENS = 16, 64, 64


def measure(request: StageRequest, scratch: Path) -> StageResult:
    """metrics.json, or reference.json."""
    params, inputs = request.params, request.inputs
    precision = Precision(params["precision"])
    spec = embed.EmbedSpec.load(inputs["task.json"].read_bytes())
    (tower,) = spec.towers
    encoder = embed.Encoder(inputs["tokenizer.json"].read_bytes(), spec)
    labelled = _labelled(encoder, params, inputs)
    if params["evaluated"] == "reference":
        return _reference(tower, labelled, request, scratch)
    engine = external_data.stage_input(inputs, "engine", scratch)
    started = time.monotonic()
    runner, judged_with = open_runner(engine, precision, params, tower, scratch)
    golden = embed.load_golden(inputs["golden.json"].read_bytes())
    items = encoder.encode(golden.texts, truncate="END")
    metrics = {
        "schema_version": SCHEMA_VERSION,
        "task": params["task"],
        "precision": str(precision),
        "evaluated": params["evaluated"],
        "judged_with": judged_with,
        "size_bytes": external_data.size_bytes(inputs, "engine"),
        "cosine": cosine(runner.vectors(items), golden.vectors),
        "batch_invariance": batch_invariance(runner, items),
        "retrieval": _retrieval(runner, labelled, inputs, scratch),
        "realized_precision": realized(runner.backend, engine, inputs.get("typed.onnx")),
    }
    runner.backend.close()
    judged_s = time.monotonic() - started
    if params.get("speed"):
        loads = speed.text_loads(np.concatenate(items), tower, spec)
        metrics["speed"] = speed.measure(engine, precision, loads, params, tower, baseline=inputs.get("baseline"))
    path = request.output_dir / "metrics.json"
    path.write_bytes(json.dumps(metrics, sort_keys=True, allow_nan=False).encode())
    facts = {
        "cosine_mean": metrics["cosine"]["mean"],
        "cosine_min": metrics["cosine"]["min"],
        "ndcg_at_10": metrics["retrieval"]["ndcg_at_10"],
        "judged_with": judged_with,
        "accuracy_s": round(judged_s, 1),
    }
    return StageResult(outputs={"metrics.json": path}, facts=facts)


def cosine(vectors: Rows, reference: Rows) -> dict[str, Any]:
    """(N, D) unit vectors against the fp32 reference's: the figures, and every value for the report's histogram."""
    reference = reference / np.linalg.norm(reference, axis=1, keepdims=True)
    values = np.einsum("nd,nd->n", vectors.astype(np.float64), reference.astype(np.float64))
    return {
        "num_texts": len(values),
        "mean": rounded(values.mean()),
        "p1": rounded(np.quantile(values, 0.01)),
        "min": rounded(values.min()),
        "values": [rounded(value) for value in values],
    }


def batch_invariance(runner: Runner, items: Items) -> dict[str, Any]:
    """Texts alone against the same texts in a full batch of mixed lengths: padding must not leak into a vector."""
    by_length = sorted(cut(items, INVARIANCE_MAX_TOKENS), key=lambda item: item.size)
    size = min(INVARIANCE_BATCH, runner.tower.max_batch, len(items))
    mixed = [by_length[i] for i in np.linspace(0, len(by_length) - 1, size).astype(int)]
    probes = np.linspace(0, size - 1, min(INVARIANCE_TEXTS, size)).astype(int)
    together = unit(runner.run(mixed))[probes]
    alone = np.concatenate([unit(runner.run([mixed[i]])) for i in probes])
    values = np.einsum("nd,nd->n", together.astype(np.float64), alone.astype(np.float64))
    return {"min_cosine": rounded(values.min()), "num_texts": len(probes), "batch_size": size}


@dataclass(frozen=True, kw_only=True)
class _Labelled:
    """A retrieval set in tokens."""

    name: str  # "stdlib-docstrings"
    max_tokens: int
    queries: Items
    passages: Items
    relevant: tuple[Mapping[int, int], ...]

    def score(self, runner: Runner) -> NDArray[np.float64]:
        """nDCG@10 of each query, (Q,)."""
        return retrieval.ndcg_at_10(runner.vectors(self.queries), runner.vectors(self.passages), self.relevant)


def _labelled(encoder: embed.Encoder, params: Mapping[str, Any], inputs: Mapping[str, Path]) -> _Labelled:
    name = str(params.get("retrieval", "stdlib-docstrings"))
    if name.startswith("beir:"):
        texts = retrieval.read_beir(Path(params.get("source_base", ".")) / name.removeprefix("beir:"))
    else:
        texts = retrieval.parse(json.loads(inputs["texts.json"].read_bytes())["retrieval"])
    default = BEIR_MAX_TOKENS if name.startswith("beir:") else RETRIEVAL_MAX_TOKENS
    max_tokens = int(params.get("retrieval_max_tokens", default))
    return _Labelled(
        name=name,
        max_tokens=max_tokens,
        queries=cut(encoder.encode(texts.queries, truncate="END", input_type="query"), max_tokens),
        passages=cut(encoder.encode(texts.passages, truncate="END", input_type="passage"), max_tokens),
        relevant=texts.relevant,
    )


def _retrieval(runner: Runner, labelled: _Labelled, inputs: Mapping[str, Path], scratch: Path) -> dict[str, Any]:
    """nDCG@10 of the engine and of the fp32 reference, on the same tokens."""
    found = labelled.score(runner)
    expected = found if is_reference(inputs) else _expected(runner.tower, labelled, inputs, scratch)
    drop = retrieval.drop(expected, found)
    return {
        "set": labelled.name,
        "max_tokens": labelled.max_tokens,
        "num_queries": len(labelled.queries),
        "num_passages": len(labelled.passages),
        "ndcg_at_10": rounded(found.mean()),
        "reference_ndcg_at_10": rounded(expected.mean()),
        "drop": rounded(drop.mean),
        "drop_low": rounded(drop.low),
        "drop_high": rounded(drop.high),
    }


def _reference(tower: Tower, labelled: _Labelled, request: StageRequest, scratch: Path) -> StageResult:
    values = _expected(tower, labelled, request.inputs, scratch)
    content = {"set": labelled.name, "max_tokens": labelled.max_tokens, "ndcg_at_10": [rounded(v) for v in values]}
    path = request.output_dir / "reference.json"
    path.write_bytes(json.dumps(content, sort_keys=True).encode())
    return StageResult(outputs={"reference.json": path}, facts={"ndcg_at_10": rounded(values.mean())})


def _expected(tower: Tower, labelled: _Labelled, inputs: Mapping[str, Path], scratch: Path) -> NDArray[np.float64]:
    """What the fp32 reference finds: as recorded (reference.json), else by running fp32.onnx."""
    if "reference.json" in inputs:
        recorded = json.loads(inputs["reference.json"].read_bytes())
        if (recorded["set"], recorded["max_tokens"]) != (labelled.name, labelled.max_tokens):
            raise GateError(
                f"reference.json is of {recorded['set']} cut at {recorded['max_tokens']} tokens, "
                f"not of {labelled.name} cut at {labelled.max_tokens}; measure the reference again"
            )
        return np.array(recorded["ndcg_at_10"])
    how = {"backend": "onnxruntime", "evaluated": "fp32 reference"}
    reference = external_data.stage_input(inputs, "fp32.onnx", scratch)
    runner, _ = open_runner(reference, Precision.FP32, how, tower, scratch)
    values = labelled.score(runner)
    runner.backend.close()
    return values
