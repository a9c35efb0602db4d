"""The engine alone, a real process: it gives its model's vectors, and times of each batch."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from benchmarks.limits.raw_engine import RawEngine, Read, Timed
from tests.support.profiles import Tiny
from tests.support.side_by_side import ROW


def test_the_engine_alone_gives_the_vectors_of_its_model(embed_dist: Path, tiny: Tiny) -> None:
    texts = ["w1 w2 w3", "w4", "w5 w6 w7 w8 w9"]
    with RawEngine(embed_dist, ROW) as engine:
        vectors = engine.read(Read(texts=tuple(texts)))
        seconds = engine.times(Timed(batches=((5, 9), (30,)), seconds=0.05, multiple=16))
        at_once = engine.times(Timed(batches=((5, 9), (30,)), seconds=0.05, num_streams=2))
    assert np.allclose(vectors, tiny.reference(texts), atol=1e-6)
    assert seconds.shape[1] == 2
    assert (seconds > 0).all()
    assert at_once.shape[1] == 2
    assert len(at_once) >= 2  # a pass of each
