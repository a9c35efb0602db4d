"""Run NVIDIA Model Optimizer: its way to read batches, and its output kept from a person's terminal."""

from __future__ import annotations

import io
import logging
import os
import shutil
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

from serving.backends.base import Inputs


def quantize_fp8(source: Path, batches: Sequence[Inputs], scratch: Path) -> Any:
    """fp32 ONNX -> Q/DQ pairs around the matrix products, fp16 elsewhere, from the activations the batches cause."""
    import onnx
    from modelopt.onnx.quantization import quantize

    # Model Optimizer writes into its input's folder, and names temporary files after it.
    copy, target = scratch / "fp32.onnx", scratch / "typed.onnx"
    shutil.copyfile(source, copy)
    quantize(
        str(copy),
        quantize_mode="fp8",
        calibration_data_reader=Reader(batches),
        calibration_method="max",
        calibration_eps=["cpu"],
        high_precision_dtype="fp16",
        output_path=str(target),
        log_level="WARNING",
    )
    return onnx.load(target)


class Reader:
    """Batches as Model Optimizer reads them: one after the other, and the first one any number of times."""

    def __init__(self, batches: Sequence[Inputs]) -> None:
        self._batches = [dict(batch) for batch in batches]
        self._position = 0

    def get_first(self) -> Inputs:
        return self._batches[0]

    def get_next(self) -> Inputs | None:
        if self._position == len(self._batches):
            return None
        self._position += 1
        return self._batches[self._position - 1]

    def rewind(self) -> None:
        self._position = 0


@contextmanager
def captured() -> Iterator[io.StringIO]:
    """What the libraries print, kept for the error message instead of a person's terminal."""
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    log = io.StringIO()
    level = logging.root.manager.disable
    logging.disable(logging.INFO)
    try:
        with warnings.catch_warnings(), redirect_stdout(log), redirect_stderr(log):
            warnings.simplefilter("ignore")
            yield log
    finally:
        logging.disable(level)
        _detach_log_handlers()


def _detach_log_handlers() -> None:
    """Model Optimizer's log handlers hold the captured stream: later messages would be written to it, unseen."""
    logger = logging.getLogger("modelopt.onnx")
    for handler in list(logger.handlers):
        logger.removeHandler(handler)
