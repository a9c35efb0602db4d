"""The server with an engine that costs nothing: what is left is what the server itself costs."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import uvloop
from numpy.typing import NDArray

from serving.api.state import Limits, Service
from serving.backends.base import Inputs, LoadOptions
from serving.contract.profile import Precision
from serving.http.listen import bind
from serving.http.server import serve
from serving.settings.settings import load
from serving.start import boot, service
from serving.tasks.base import Spec
from serving.watch import logs
from serving.watch.metrics import Metrics


class NullEngine:
    """Answers at once: the same unit vector for every item."""

    name = "null"
    lends_all = False
    input_names = ("input_ids", "attention_mask", "token_type_ids")

    def __init__(self, dimension: int) -> None:
        self._row = np.full(dimension, dimension**-0.5, dtype=np.float32)

    def infer(self, inputs: Inputs, *, alone: bool = False) -> NDArray[np.float32]:
        return np.tile(self._row, (len(inputs["input_ids"]), 1))

    def realized_precision(self) -> Mapping[str, float]:
        return {}

    def close(self) -> None:
        pass


def main(rootfs: Path, port: int) -> int:
    """rootfs: dist/<model>/rootfs of an embedding model. Everything but its engine is the server's own."""
    settings = load(
        {
            "NIM_HTTP_API_PORT": str(port),
            "NIM_CPU_ONLY": "1",
            "ENGINERY_ROOT": str(rootfs / "opt" / "nim"),
            "NIM_LOG_LEVEL": "WARNING",
            **os.environ,
        }
    )
    logs.setup(level=settings.log_level, as_json=False)

    def null(profile: object, spec: Spec, *rest: object) -> tuple[dict[str, NullEngine], LoadOptions]:
        engines = {tower.name: NullEngine(tower.dimension) for tower in spec.towers}
        return engines, LoadOptions(precision=Precision.FP32)

    vars(service)["load_engines"] = null
    vars(service)["prove"] = lambda *args: SimpleNamespace(min_cosine=1.0, num_items=0)

    def start(metrics: Metrics, say: Callable[[str], None]) -> Service[Any]:
        return boot.start(settings, metrics, say)

    code: int = uvloop.run(serve(bind("127.0.0.1", port), start, Limits()))
    return code


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), int(sys.argv[2])))
