"""Measure a reranking engine: its logits against the fp32 reference's, the order it finds, batch invariance."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipelines.datasets import rerank as rerank_set
from pipelines.datasets import retrieval
from pipelines.errors import GateError
from pipelines.measure import speed
from pipelines.measure.runner import SCHEMA_VERSION, Items, Runner, cut, is_reference, open_runner, realized, rounded
from pipelines.onnx_graph import external_data
from pipelines.stage import StageRequest, StageResult
from serving.contract.profile import Precision
from serving.tasks import rerank
from serving.tasks.base import Tower

INVARIANCE_PAIRS, INVARIANCE_BATCH, INVARIANCE_MAX_TOKENS = 16, 64, 96


def measure(request: StageRequest, scratch: Path) -> StageResult:
    """metrics.json, or reference.json."""
    params, inputs = request.params, request.inputs
    precision = Precision(params["precision"])
    spec = rerank.RerankSpec.load(inputs["task.json"].read_bytes())
    (tower,) = spec.towers
    encoder = rerank.Encoder(inputs["tokenizer.json"].read_bytes(), spec)
    labelled = _labelled(encoder, params, inputs)
    if params["evaluated"] == "reference":
        return _reference(tower, labelled, request, scratch)
    engine = external_data.stage_input(inputs, "engine", scratch)
    started = time.monotonic()
    runner, judged_with = open_runner(engine, precision, params, tower, scratch)
    golden = rerank.load_golden(inputs["golden.json"].read_bytes())
    items = [encoder.encode(query, [passage], truncate="END")[0] for query, passage in golden.pairs]
    metrics = {
        "schema_version": SCHEMA_VERSION,
        "task": params["task"],
        "precision": str(precision),
        "evaluated": params["evaluated"],
        "judged_with": judged_with,
        "size_bytes": external_data.size_bytes(inputs, "engine"),
        "scores": scores(runner.rows(items)[:, 0], golden.scores),
        "batch_invariance": batch_invariance(runner, items),
        "retrieval": _retrieval(runner, labelled, inputs, scratch),
        "realized_precision": realized(runner.backend, engine, inputs.get("typed.onnx")),
    }
    runner.backend.close()
    judged_s = time.monotonic() - started
    if params.get("speed"):
        loads = speed.text_loads(np.concatenate(items, axis=1), tower, spec)
        metrics["speed"] = speed.measure(engine, precision, loads, params, tower, baseline=inputs.get("baseline"))
    path = request.output_dir / "metrics.json"
    path.write_bytes(json.dumps(metrics, sort_keys=True, allow_nan=False).encode())
    facts = {
        "kendall_tau": metrics["scores"]["kendall_tau"],
        "max_abs_error": metrics["scores"]["max_abs_error"],
        "ndcg_at_10": metrics["retrieval"]["ndcg_at_10"],
        "judged_with": judged_with,
        "accuracy_s": round(judged_s, 1),
    }
    return StageResult(outputs={"metrics.json": path}, facts=facts)


def scores(found: NDArray[np.float32], golden: NDArray[np.float32]) -> dict[str, Any]:
    """(N,) logits against the fp32 reference's: errors, and how far the order of all pairs agrees."""
    from scipy.stats import kendalltau

    errors = np.abs(found.astype(np.float64) - golden.astype(np.float64))
    # Undefined where all scores are equal, which orders nothing.
    tau = float(kendalltau(found, golden).statistic) if np.ptp(found) > 0 and np.ptp(golden) > 0 else 0.0
    return {
        "num_pairs": len(errors),
        "max_abs_error": rounded(errors.max()),
        "mean_abs_error": rounded(errors.mean()),
        "kendall_tau": rounded(tau),
        "golden": [rounded(value) for value in golden],
        "found": [rounded(value) for value in found],
    }


def batch_invariance(runner: Runner, items: Items) -> dict[str, Any]:
    """Pairs alone against the same pairs in a full batch of mixed lengths: padding must not leak into a score."""
    by_length = sorted(cut(items, INVARIANCE_MAX_TOKENS), key=lambda item: int(item.shape[-1]))
    size = min(INVARIANCE_BATCH, runner.tower.max_batch, len(items))
    mixed = [by_length[i] for i in np.linspace(0, len(by_length) - 1, size).astype(int)]
    probes = np.linspace(0, size - 1, min(INVARIANCE_PAIRS, size)).astype(int)
    together = runner.run(mixed)[probes, 0].astype(np.float64)
    alone = np.concatenate([runner.run([mixed[i]])[:, 0] for i in probes]).astype(np.float64)
    return {"max_abs_error": rounded(np.abs(together - alone).max()), "num_pairs": len(probes), "batch_size": size}


@dataclass(frozen=True, kw_only=True)
class _Labelled:
    """Candidates in tokens."""

    name: str  # "stdlib-docstrings"
    found: NDArray[np.int64]  # (Q, K)
    items: Items  # Q x K
    relevant: Sequence[Mapping[int, int]]
    num_passages: int

    def score(self, runner: Runner) -> NDArray[np.float64]:
        """nDCG@10 of each query, (Q,), in the engine's order of the candidates."""
        logits = runner.rows(self.items)[:, 0].reshape(self.found.shape)
        return retrieval.ndcg_of_ranking(rerank_set.ranked(self.found, logits), self.relevant)


def _labelled(encoder: rerank.Encoder, params: Mapping[str, Any], inputs: Mapping[str, Path]) -> _Labelled:
    name = str(params.get("retrieval", "stdlib-docstrings"))
    if name.startswith("beir:"):
        whole = retrieval.read_beir(Path(params.get("source_base", ".")) / name.removeprefix("beir:"))
    else:
        whole = retrieval.parse(json.loads(inputs["texts.json"].read_bytes())["retrieval"])
    chosen = rerank_set.candidates(whole, num_queries=rerank_set.NUM_QUERIES, num_candidates=rerank_set.NUM_CANDIDATES)
    items = [encoder.encode(query, [passage], truncate="END")[0] for query, passage in chosen.pairs()]
    return _Labelled(
        name=name,
        found=chosen.found,
        items=cut(items, rerank_set.MAX_TOKENS),
        relevant=chosen.relevant,
        num_passages=len(whole.passages),
    )


def _retrieval(runner: Runner, labelled: _Labelled, inputs: Mapping[str, Path], scratch: Path) -> dict[str, Any]:
    """nDCG@10 of BM25, of the fp32 reference and of the engine, on the same candidates."""
    found = labelled.score(runner)
    expected = found if is_reference(inputs) else _expected(runner.tower, labelled, inputs, scratch)
    drop = retrieval.drop(expected, found)
    return {
        "set": labelled.name,
        "first_stage": rerank_set.FIRST_STAGE,
        "max_tokens": rerank_set.MAX_TOKENS,
        "num_queries": len(labelled.found),
        "num_passages": labelled.num_passages,
        "num_candidates": labelled.found.shape[1],
        "first_stage_ndcg_at_10": rounded(retrieval.ndcg_of_ranking(labelled.found, labelled.relevant).mean()),
        "ndcg_at_10": rounded(found.mean()),
        "reference_ndcg_at_10": rounded(expected.mean()),
        "drop": rounded(drop.mean),
        "drop_low": rounded(drop.low),
        "drop_high": rounded(drop.high),
    }


def _reference(tower: Tower, labelled: _Labelled, request: StageRequest, scratch: Path) -> StageResult:
    values = _expected(tower, labelled, request.inputs, scratch)
    content = {
        "set": labelled.name,
        "num_candidates": rerank_set.NUM_CANDIDATES,
        "ndcg_at_10": [rounded(v) for v in values],
    }
    path = request.output_dir / "reference.json"
    path.write_bytes(json.dumps(content, sort_keys=True).encode())
    return StageResult(outputs={"reference.json": path}, facts={"ndcg_at_10": rounded(values.mean())})


def _expected(tower: Tower, labelled: _Labelled, inputs: Mapping[str, Path], scratch: Path) -> NDArray[np.float64]:
    """What the fp32 reference finds: as recorded (reference.json), else by running fp32.onnx."""
    if "reference.json" in inputs:
        recorded = json.loads(inputs["reference.json"].read_bytes())
        has = recorded["set"], len(recorded["ndcg_at_10"]), recorded.get("num_candidates")
        needs = labelled.name, len(labelled.found), rerank_set.NUM_CANDIDATES
        if has != needs:
            told = ["{}, {} queries with {} candidates".format(*which) for which in (has, needs)]
            raise GateError(f"reference.json is of {told[0]}, not of {told[1]}; measure the reference again")
        return np.array(recorded["ndcg_at_10"])
    how = {"backend": "onnxruntime", "evaluated": "fp32 reference"}
    reference = external_data.stage_input(inputs, "fp32.onnx", scratch)
    runner, _ = open_runner(reference, Precision.FP32, how, tower, scratch)
    values = labelled.score(runner)
    runner.backend.close()
    return values
