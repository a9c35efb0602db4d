"""The proof: only an engine that reproduces its golden outputs passes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
from numpy.typing import NDArray

from serving import backends
from serving.backends.base import Inputs, LoadOptions
from serving.contract.profile import Precision, ShapeRange
from serving.errors import ProofFailed
from serving.start.prove import MAX_BATCH, MAX_BATCH_COST, Infer, ProofReport, prove, rows
from serving.tasks import clip, rerank
from serving.tasks.base import ONLY
from serving.tasks.embed import Golden, dump_golden
from serving.tasks.towers import TextTower
from tests.support.profiles import Tiny
from tests.support.tiny_models import Model, reranker, see_and_read

FP32 = LoadOptions(precision=Precision.FP32, num_threads=1)


def prove_tiny(infer: Infer, tiny: Tiny, min_cosine: float, golden: Golden | None = None) -> ProofReport:
    recorded = dump_golden(golden or tiny.golden)
    return prove(tiny.spec, {ONLY: infer}, tiny.tokenizer, recorded, min_cosine)


def test_the_right_engine_is_proved_with_its_figures(tiny: Tiny) -> None:
    backend = backends.load("openvino", tiny.blob, FP32)
    report = prove_tiny(backend.infer, tiny, 0.999)
    assert report.num_items == len(tiny.golden.texts)
    assert 0.999 <= report.min_cosine <= report.mean_cosine <= 1.0001


def test_the_engine_of_another_model_is_refused(tiny: Tiny, other: Tiny) -> None:
    backend = backends.load("openvino", other.blob, FP32)
    with pytest.raises(ProofFailed, match=r"lowest cosine -?0\.\d+ \(item \d of 6, mean .*needs 0\.9800"):
        prove_tiny(backend.infer, tiny, 0.98)


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda v: v * np.float32(np.nan), "zero or not finite"),
        (lambda v: v * 0, "zero or not finite"),
        (lambda v: v * 2, "largest error of length 1.0000"),
        (lambda v: v[:, :3], "another model"),
        (lambda v: v[:1], "another model"),
        (lambda v: v[::-1].copy(), "lowest cosine"),
    ],
)
def test_wrong_outputs_are_refused(tiny: Tiny, damage: object, words: str) -> None:
    backend = backends.load("onnxruntime", tiny.onnx, FP32)

    def infer(inputs: Inputs) -> NDArray[np.float32]:
        return damage(backend.infer(inputs))  # type: ignore[operator, no-any-return]

    with pytest.raises(ProofFailed, match=words):
        prove_tiny(infer, tiny, 0.98)


def test_golden_outputs_that_are_empty_or_of_another_width_prove_nothing(tiny: Tiny) -> None:
    backend = backends.load("onnxruntime", tiny.onnx, FP32)
    for golden in (
        replace(tiny.golden, texts=(), vectors=tiny.golden.vectors[:0]),
        replace(tiny.golden, vectors=tiny.golden.vectors[:, :4]),
    ):
        with pytest.raises(ProofFailed, match="they belong to another model"):
            prove_tiny(backend.infer, tiny, 0.98, golden)
    broken = replace(tiny.golden, vectors=tiny.golden.vectors * np.float32(np.nan))
    with pytest.raises(ProofFailed, match="lowest cosine nan"):
        prove_tiny(backend.infer, tiny, 0.98, broken)


def test_the_proof_runs_small_batches_that_a_server_would_run_too() -> None:
    tower = TextTower(
        dimension=1,
        pad_token_id=0,
        input_names=("input_ids", "attention_mask"),
        shapes=ShapeRange(min=(1, 1), opt=(8, 64), max=(64, 2048)),
    )
    lengths = [600, *range(5, 512, 30), 3, 2000]
    shapes: list[tuple[int, ...]] = []

    def infer(inputs: Inputs) -> NDArray[np.float32]:
        shapes.append(inputs["input_ids"].shape)
        return inputs["attention_mask"].sum(axis=1, keepdims=True).astype(np.float32)

    found = rows(infer, tower, [np.ones(length, dtype=np.int64) for length in lengths])
    assert found[:, 0].tolist() == lengths
    assert all(size == 1 or (size <= MAX_BATCH and size * width <= MAX_BATCH_COST) for size, width in shapes)
    assert len(shapes) < len(lengths)
    shapes.clear()
    rows(infer, tower, [np.ones(5, dtype=np.int64)] * 4)
    assert [size for size, _ in shapes] == [2, 2]  # each of the two ways to run a batch is proved


@pytest.fixture(scope="module")
def ranks() -> Model:
    return reranker()


@pytest.fixture(scope="module")
def sees() -> Model:
    return see_and_read()


def prove_model(model: Model, infer: dict[str, Infer] | None = None, golden: bytes | None = None) -> ProofReport:
    engines = {tower: model.backend(tower).infer for tower in model.engines}
    return prove(model.spec, engines | (infer or {}), model.tokenizer, golden or model.proof, 0.98)


def damaged(model: Model, tower: str, damage: Callable[[NDArray[np.float32]], NDArray[np.float32]]) -> dict[str, Infer]:
    backend = model.backend(tower)
    return {tower: lambda inputs: damage(backend.infer(inputs))}


def test_a_reranker_is_proved_by_the_correlation_of_its_scores(ranks: Model) -> None:
    report = prove_model(ranks)
    assert report.num_items == len(rerank.load_golden(ranks.proof).pairs)
    assert report.min_cosine == report.mean_cosine == pytest.approx(1)
    assert report.max_error < 1e-3


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda s: s * 2, "standard deviations off, allowed 0.25"),  # correlation sees neither scale
        (lambda s: s + 100, "standard deviations off, allowed 0.25"),  # nor offset
        (lambda s: -s, r"correlation -1\.0000, needs 0\.9800"),
        (lambda s: s * 0, r"correlation 0\.0000"),
        (lambda s: s * np.float32(np.nan), "6 of 6 scores are not finite"),
        (lambda s: np.repeat(s, 2, axis=1), "another model"),
        (lambda s: s[:1], "another model"),
    ],
)
def test_a_reranker_that_scores_otherwise_is_refused(
    ranks: Model, damage: Callable[[NDArray[np.float32]], NDArray[np.float32]], words: str
) -> None:
    with pytest.raises(ProofFailed, match=words):
        prove_model(ranks, damaged(ranks, ONLY, damage))


def test_one_score_that_is_off_is_named(ranks: Model) -> None:
    golden = rerank.load_golden(ranks.proof)
    scores = golden.scores.copy()
    scores[4] += 0.5 * scores.std()
    with pytest.raises(ProofFailed, match="pair 4 of 6 scores"):
        prove_model(ranks, golden=rerank.dump_golden(replace(golden, scores=scores)))


def test_scores_none_of_which_is_far_off_must_still_correlate(ranks: Model) -> None:
    golden = rerank.load_golden(ranks.proof)
    shaken = golden.scores + np.array([1, -1] * 3, np.float32) * 0.2 * golden.scores.std()
    file = rerank.dump_golden(replace(golden, scores=shaken))
    engine = {ONLY: ranks.backend(ONLY).infer}
    assert prove(ranks.spec, engine, ranks.tokenizer, file, 0.9).max_error == pytest.approx(0.2, abs=0.02)
    with pytest.raises(ProofFailed, match=r"correlation 0\.9\d+, needs 0\.9990"):
        prove(ranks.spec, engine, ranks.tokenizer, file, 0.999)


@pytest.mark.parametrize("scores", [[1.5] * 6, [np.nan] * 6, [1.0]])
def test_scores_that_do_not_differ_prove_nothing(ranks: Model, scores: list[float]) -> None:
    golden = rerank.load_golden(ranks.proof)
    golden = replace(golden, pairs=golden.pairs[: len(scores)], scores=np.array(scores, np.float32))
    with pytest.raises(ProofFailed, match=f"{len(scores)} scores that do not differ"):
        prove_model(ranks, golden=rerank.dump_golden(golden))


def test_both_engines_of_a_clip_are_proved(sees: Model) -> None:
    report = prove_model(sees)
    assert report.num_items == 4 + 3  # captions and pictures
    assert report.min_cosine == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize(("tower", "item"), [(clip.TEXT, r"[0-3]"), (clip.IMAGE, r"[4-6]")])
def test_a_clip_with_one_wrong_engine_is_refused(sees: Model, tower: str, item: str) -> None:
    with pytest.raises(ProofFailed, match=rf"lowest cosine -?0\.\d+ \(item {item} of 7"):
        prove_model(sees, damaged(sees, tower, lambda v: np.roll(v, 1, axis=1)))


def test_a_clip_whose_golden_outputs_are_of_one_engine_only_is_refused(sees: Model) -> None:
    golden = clip.load_golden(sees.proof)
    without_pictures = replace(golden, images=(), image_vectors=golden.image_vectors[:0])
    without_texts = replace(golden, texts=(), text_vectors=golden.text_vectors[:0])
    for part in (without_pictures, without_texts):
        with pytest.raises(ProofFailed, match="belong to another model"):
            prove_model(sees, golden=clip.dump_golden(part))
