"""OpenVINO: what it runs, how it is imported, and whose turn its threads let go first."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np

from serving import backends
from serving.backends import openvino
from serving.backends.base import Inputs, LoadOptions
from serving.contract.profile import Precision
from serving.tasks.embed import Encoder
from tests.support.profiles import Tiny

FP32 = LoadOptions(precision=Precision.FP32, num_threads=1)


def inputs(tiny: Tiny, *texts: str) -> Inputs:
    return tiny.spec.towers[0].collate(Encoder(tiny.tokenizer, tiny.spec).encode(texts))


def test_openvino_tells_the_precision_that_it_runs(tiny: Tiny) -> None:
    loaded = backends.load("openvino", tiny.blob, FP32)
    assert loaded.realized_precision() == {"fp32": 1.0}
    loaded.close()


def test_openvino_is_imported_without_its_telemetry() -> None:
    """In a process of its own: here another test may have imported openvino in its own way."""
    code = (
        "import sys; from serving.backends.openvino import import_openvino; import_openvino(); "
        "sys.exit(sys.modules['openvino_telemetry'] is not None)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_in_a_server_openvinos_threads_let_all_others_go_first(tiny: Tiny, tmp_path: Path) -> None:
    """In a process of its own: niceness is a thread's, and threads are shared by all engines of a process."""
    code = """
import os, sys
from contextlib import suppress
from pathlib import Path
from serving import backends
from serving.backends.base import LoadOptions
from serving.contract.profile import Precision
options = LoadOptions(precision=Precision.FP32, num_threads=2, num_streams=2, yields=True)
engine = backends.load("openvino", Path(sys.argv[1]).read_bytes(), options)
niceness = []
for thread in os.listdir("/proc/self/task"):
    with suppress(ProcessLookupError):  # a thread that has ended since
        niceness.append(os.getpriority(os.PRIO_PROCESS, int(thread)))
print(os.getpriority(os.PRIO_PROCESS, 0), max(niceness))
"""
    (tmp_path / "engine.blob").write_bytes(tiny.blob)
    command = [sys.executable, "-c", code, str(tmp_path / "engine.blob")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    now = os.getpriority(os.PRIO_PROCESS, 0)
    assert done.stdout.split() == [str(now), str(min(19, now + openvino.NICE))]


def test_openvino_answers_the_same_with_the_threads_that_it_lends_to_a_batch_that_runs_alone(tiny: Tiny) -> None:
    options = LoadOptions(precision=Precision.FP32, num_threads=2, num_streams=2, alone_threads=2)
    engine = openvino.load(tiny.blob, options)
    assert engine.lends_all
    assert engine._alone is not engine._requests
    assert (engine._requests.qsize(), engine._alone.qsize()) == (2, 1)
    batch = inputs(tiny, *tiny.golden.texts[:5])
    for alone in (True, False):
        assert np.allclose(engine.infer(batch, alone=alone), tiny.golden.vectors[:5], atol=1e-5)
    assert (engine._requests.qsize(), engine._alone.qsize()) == (2, 1)
    engine.close()
    own = openvino.load(tiny.blob, replace(options, alone_threads=0))
    assert own._alone is own._requests
