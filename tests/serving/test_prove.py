"""The proof: only an engine that reproduces its golden outputs passes."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from numpy.typing import NDArray

from serving import backends
from serving.backends.base import Inputs, LoadOptions
from serving.errors import ProofFailed
from serving.profile import Precision
from serving.prove import Infer, ProofReport, prove
from serving.tasks.base import ONLY
from serving.tasks.embed import Golden, dump_golden
from tests.serving.conftest import Tiny

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
