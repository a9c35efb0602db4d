"""What a load generator's process hands back, for tests that judge it."""

from __future__ import annotations

from array import array

from benchmarks.load.job import Outcome


def outcome(which: list[int], status: list[int], took: list[float], wall_s: float = 2.0) -> Outcome:
    zeros = array("d", [0.0] * len(which)).tobytes()
    return Outcome(
        which=array("I", which).tobytes(),
        status=array("H", status).tobytes(),
        began=zeros,
        took=array("d", took).tobytes(),
        lag=zeros,
        wall_s=wall_s,
        cpu_s=0.1,
        num_wrong=0,
        num_bytes=0,
        notes=(),
    )
