"""Measure an engine with the code that serves it: accuracy, realised precision, speed. Judges nothing."""

from __future__ import annotations

import importlib.metadata
import json
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipelines import retrieval, speed, typed_onnx
from pipelines.errors import GateError
from pipelines.stage import StageRequest, StageResult
from serving.backends import load
from serving.backends.base import Backend, LoadOptions
from serving.errors import BackendError
from serving.profile import Precision
from serving.tasks import embed

SCHEMA_VERSION = 1
# A batch of texts of like length, so that little is padding; more tokens at once only cost memory.
MAX_BATCH_TEXTS, MAX_BATCH_TOKENS = 32, 4096
# Of queries and passages, in the engine's vectors and the reference's alike. 64 tokens tell docstrings apart, and
# an fp8 graph takes a millisecond a token here; a person's own set is read further.
RETRIEVAL_MAX_TOKENS, BEIR_MAX_TOKENS = 64, 256
INVARIANCE_TEXTS, INVARIANCE_BATCH, INVARIANCE_MAX_TOKENS = 16, 64, 64

Items = Sequence[NDArray[np.int64]]  # token ids, each (T,)
Vectors = NDArray[np.float32]  # (N, D)


@dataclass(frozen=True, kw_only=True)
class Runner:
    """A loaded engine and how many batches it may run at once."""

    backend: Backend
    spec: embed.EmbedSpec
    num_workers: int

    def vectors(self, items: Items) -> Vectors:
        """N token arrays -> (N, D), each divided by its norm, in the order given."""
        out = np.zeros((len(items), self.spec.dimension), dtype=np.float32)
        with ThreadPoolExecutor(max_workers=self.num_workers) as pool:
            groups = list(batches([item.size for item in items], self.spec))
            for group, rows in zip(groups, pool.map(lambda g: self.run([items[i] for i in g]), groups), strict=True):
                out[group] = rows
        return out

    def run(self, items: Items) -> Vectors:
        """One batch."""
        rows = self.backend.infer(embed.collate(items, self.spec))
        norms = np.linalg.norm(rows, axis=1, keepdims=True)
        if not np.isfinite(rows).all() or (norms == 0).any():
            raise GateError("the engine gave vectors that are not finite or are zero; it cannot be judged")
        return np.asarray(rows / norms, dtype=np.float32)


def run(request: StageRequest) -> StageResult:
    """The stage: metrics.json; or reference.json, when what is judged on is "reference" (then fp32.onnx is enough).

    Rows of a model share one reference.json as input; without it each runs fp32.onnx again.
    """
    params, inputs = request.params, request.inputs
    if params["task"] != "embed":
        raise GateError(f"task '{params['task']}' cannot be measured yet; 'embed' can")
    precision = Precision(params["precision"])
    spec = embed.load_spec(inputs["task.json"].read_bytes())
    encoder = embed.Encoder(inputs["tokenizer.json"].read_bytes(), spec)
    labelled = _labelled(encoder, params, inputs)
    if params["judged_on"] == "reference":
        return _reference(spec, labelled, request)
    engine = inputs["engine"].read_bytes()
    started = time.monotonic()
    runner, judged_with = _runner(engine, precision, params, spec)
    golden = embed.load_golden(inputs["golden.json"].read_bytes())
    items = encoder.encode(golden.texts, truncate="END")
    metrics = {
        "schema_version": SCHEMA_VERSION,
        "task": params["task"],
        "precision": str(precision),
        "judged_on": params["judged_on"],
        "judged_with": judged_with,
        "size_bytes": len(engine),
        "cosine": cosine(runner.vectors(items), golden.vectors),
        "batch_invariance": batch_invariance(runner, items),
        "retrieval": _retrieval(runner, labelled, inputs),
        "realized_precision": _realized(runner.backend, engine, inputs.get("typed.onnx")),
    }
    runner.backend.close()
    judged_s = time.monotonic() - started
    if params.get("speed"):
        stream = np.concatenate(items)
        metrics["speed"] = speed.measure(engine, precision, stream, params, spec, above=inputs.get("above"))
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


def batches(lengths: Sequence[int], spec: embed.EmbedSpec) -> Iterator[list[int]]:
    """Indices grouped by like length, within the engine's shapes; longest first, so that the last batch is short."""
    most = min(MAX_BATCH_TEXTS, spec.shapes.max[0])
    group: list[int] = []
    for index in sorted(range(len(lengths)), key=lambda i: (-lengths[i], i)):
        if group and (len(group) == most or (len(group) + 1) * lengths[group[0]] > MAX_BATCH_TOKENS):
            yield group
            group = []
        group.append(index)
    if group:
        yield group


def cosine(vectors: Vectors, reference: Vectors) -> dict[str, Any]:
    """(N, D) unit vectors against the fp32 reference's: the figures, and every value for the report's histogram."""
    reference = reference / np.linalg.norm(reference, axis=1, keepdims=True)
    values = np.einsum("nd,nd->n", vectors.astype(np.float64), reference.astype(np.float64))
    return {
        "num_texts": len(values),
        "mean": _round(values.mean()),
        "p1": _round(np.quantile(values, 0.01)),
        "min": _round(values.min()),
        "values": [_round(value) for value in values],
    }


def batch_invariance(runner: Runner, items: Items) -> dict[str, Any]:
    """Texts alone against the same texts in a full batch of mixed lengths: padding must not leak into a vector."""
    by_length = sorted(_cut(items, INVARIANCE_MAX_TOKENS), key=lambda item: item.size)
    size = min(INVARIANCE_BATCH, runner.spec.shapes.max[0], len(items))
    mixed = [by_length[i] for i in np.linspace(0, len(by_length) - 1, size).astype(int)]
    probes = np.linspace(0, size - 1, min(INVARIANCE_TEXTS, size)).astype(int)
    together = runner.run(mixed)[probes]
    alone = np.concatenate([runner.run([mixed[i]]) for i in probes])
    values = np.einsum("nd,nd->n", together.astype(np.float64), alone.astype(np.float64))
    return {"min_cosine": _round(values.min()), "num_texts": len(probes), "batch_size": size}


def _runner(
    engine: bytes, precision: Precision, params: Mapping[str, Any], spec: embed.EmbedSpec
) -> tuple[Runner, str]:
    """The engine, loaded to be judged, and what judged it, in words."""
    name, note, options = params["backend"], "", LoadOptions(precision=precision, cpu_isa=params.get("cpu_isa"))
    num_workers = 1
    if name == "onnxruntime":
        if params["judged_on"] == "typed-onnx":
            engine, note = typed_onnx.runnable(engine, precision)
        # Whole batches side by side: its Q/DQ kernels use one thread, and one thread a batch gives the same
        # figures on every machine.
        num_workers, options = len(os.sched_getaffinity(0)), LoadOptions(precision=precision, num_threads=1)
    try:
        backend = load(name, engine, options)
    except BackendError as error:
        raise GateError(f"{params['judged_on']} ({precision}) cannot be loaded to be judged: {error}") from error
    version = importlib.metadata.version(name) if name in {"onnxruntime", "openvino"} else ""
    judged_with = " ".join(part for part in (name, version, f"({note})" if note else "") if part)
    return Runner(backend=backend, spec=spec, num_workers=num_workers), judged_with


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
        queries=_cut(encoder.encode(texts.queries, truncate="END", input_type="query"), max_tokens),
        passages=_cut(encoder.encode(texts.passages, truncate="END", input_type="passage"), max_tokens),
        relevant=texts.relevant,
    )


def _retrieval(runner: Runner, labelled: _Labelled, inputs: Mapping[str, Path]) -> dict[str, Any]:
    """nDCG@10 of the engine and of the fp32 reference, on the same tokens."""
    found = labelled.score(runner)
    expected = found if _is_reference(inputs) else _expected(runner.spec, labelled, inputs)
    drop = retrieval.drop(expected, found)
    return {
        "set": labelled.name,
        "max_tokens": labelled.max_tokens,
        "num_queries": len(labelled.queries),
        "num_passages": len(labelled.passages),
        "ndcg_at_10": _round(found.mean()),
        "reference_ndcg_at_10": _round(expected.mean()),
        "drop": _round(drop.mean),
        "drop_low": _round(drop.low),
        "drop_high": _round(drop.high),
    }


def _reference(spec: embed.EmbedSpec, labelled: _Labelled, request: StageRequest) -> StageResult:
    values = _expected(spec, labelled, request.inputs)
    content = {"set": labelled.name, "max_tokens": labelled.max_tokens, "ndcg_at_10": [_round(v) for v in values]}
    path = request.output_dir / "reference.json"
    path.write_bytes(json.dumps(content, sort_keys=True).encode())
    return StageResult(outputs={"reference.json": path}, facts={"ndcg_at_10": _round(values.mean())})


def _is_reference(inputs: Mapping[str, Path]) -> bool:
    """The generic fp32 engine is the reference itself."""
    return "fp32.onnx" in inputs and inputs["fp32.onnx"].read_bytes() == inputs["engine"].read_bytes()


def _expected(spec: embed.EmbedSpec, labelled: _Labelled, inputs: Mapping[str, Path]) -> NDArray[np.float64]:
    """What the fp32 reference finds: as recorded (reference.json), else by running fp32.onnx."""
    if "reference.json" in inputs:
        recorded = json.loads(inputs["reference.json"].read_bytes())
        if (recorded["set"], recorded["max_tokens"]) != (labelled.name, labelled.max_tokens):
            raise GateError(
                f"reference.json is of {recorded['set']} cut at {recorded['max_tokens']} tokens, "
                f"not of {labelled.name} cut at {labelled.max_tokens}; measure the reference again"
            )
        return np.array(recorded["ndcg_at_10"])
    how = {"backend": "onnxruntime", "judged_on": "fp32 reference"}
    runner, _ = _runner(inputs["fp32.onnx"].read_bytes(), Precision.FP32, how, spec)
    values = labelled.score(runner)
    runner.backend.close()
    return values


def _realized(backend: Backend, engine: bytes, typed: Path | None) -> dict[str, float]:
    """What the backend tells; where it cannot, what the graph says: TensorRT keeps to the types of a typed ONNX."""
    shares = backend.realized_precision()
    if not shares and (typed is not None or backend.name == "onnxruntime"):
        shares = typed_onnx.realized_precision(typed.read_bytes() if typed is not None else engine)
    return {name: _round(share) for name, share in sorted(shares.items())}


def _cut(items: Items, max_tokens: int) -> list[NDArray[np.int64]]:
    """The first tokens of each, with the last one kept: it is the special token that ends a text."""
    return [item if item.size <= max_tokens else np.append(item[: max_tokens - 1], item[-1]) for item in items]


def _round(value: Any) -> float:
    return round(float(value), 7)
