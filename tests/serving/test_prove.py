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
from serving.prove import prove
from serving.tasks.embed import Encoder
from tests.serving.conftest import Tiny

FP32 = LoadOptions(precision=Precision.FP32, num_threads=1)


def test_the_right_engine_is_proved_with_its_figures(tiny: Tiny) -> None:
    backend = backends.load("openvino", tiny.blob, FP32)
    report = prove(backend.infer, Encoder(tiny.tokenizer, tiny.spec), tiny.spec, tiny.golden, 0.999)
    assert report.num_texts == len(tiny.golden.texts)
    assert 0.999 <= report.min_cosine <= report.mean_cosine <= 1.0001


def test_the_engine_of_another_model_is_refused(tiny: Tiny, other: Tiny) -> None:
    backend = backends.load("openvino", other.blob, FP32)
    with pytest.raises(ProofFailed, match=r"lowest cosine -?0\.\d+ \(text \d of 6, mean .*needs 0\.9800"):
        prove(backend.infer, Encoder(tiny.tokenizer, tiny.spec), tiny.spec, tiny.golden, 0.98)


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
        prove(infer, Encoder(tiny.tokenizer, tiny.spec), tiny.spec, tiny.golden, 0.98)


def test_golden_outputs_that_are_empty_or_of_another_width_prove_nothing(tiny: Tiny) -> None:
    backend = backends.load("onnxruntime", tiny.onnx, FP32)
    encoder = Encoder(tiny.tokenizer, tiny.spec)
    for golden in (
        replace(tiny.golden, texts=(), vectors=tiny.golden.vectors[:0]),
        replace(tiny.golden, vectors=tiny.golden.vectors[:, :4]),
    ):
        with pytest.raises(ProofFailed, match="they belong to another model"):
            prove(backend.infer, encoder, tiny.spec, golden, 0.98)
    broken = replace(tiny.golden, vectors=tiny.golden.vectors * np.float32(np.nan))
    with pytest.raises(ProofFailed, match="lowest cosine nan"):
        prove(backend.infer, encoder, tiny.spec, broken, 0.98)
