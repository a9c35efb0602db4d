"""Engines that do what a test needs of one."""

from __future__ import annotations

import threading

import numpy as np
from numpy.typing import NDArray

from serving.backends.base import Inputs
from serving.batching.lanes import Infer
from serving.tasks.base import ONLY
from tests.support.profiles import Tiny
from tests.support.tiny_models import embedder


def held(tiny: Tiny) -> tuple[threading.Event, Infer]:
    """An engine that waits until its gate opens."""
    backend = embedder(tiny).backend(ONLY)
    gate = threading.Event()

    def infer(inputs: Inputs) -> NDArray[np.float32]:
        gate.wait(10)
        return backend.infer(inputs)

    return gate, infer
