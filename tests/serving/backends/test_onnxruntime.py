"""ONNX Runtime: what it holds."""

from __future__ import annotations

import sys

import numpy as np

from serving import backends
from serving.backends.base import Inputs, LoadOptions
from serving.contract.profile import Precision
from serving.tasks.embed import Encoder
from tests.support.profiles import Tiny

FP32 = LoadOptions(precision=Precision.FP32, num_threads=1)


def inputs(tiny: Tiny, *texts: str) -> Inputs:
    return tiny.spec.towers[0].collate(Encoder(tiny.tokenizer, tiny.spec).encode(texts))


def test_onnx_runtime_lets_the_file_go_once_it_is_loaded(tiny: Tiny) -> None:
    engine = bytes(bytearray(tiny.onnx))  # nobody else holds this copy
    before = sys.getrefcount(engine)
    loaded = backends.load("onnxruntime", engine, FP32)
    assert sys.getrefcount(engine) == before
    assert np.allclose(loaded.infer(inputs(tiny, tiny.golden.texts[0]))[0], tiny.golden.vectors[0], atol=1e-5)
