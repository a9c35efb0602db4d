"""The special runs: what they make of what they saw, and that they run against a real server."""

from __future__ import annotations

import os
import time
from pathlib import Path

import numpy as np
import pytest

from benchmarks import overload, padding, soak, start_and_size
from benchmarks.runs import experiment
from benchmarks.runs.experiment import MIB, Watch
from benchmarks.servers import processes
from benchmarks.watch.procfs import Memory
from pipelines.errors import EngineryError
from tests.support.outcomes import outcome


def watch(resident: list[int], every_s: float = 1.0) -> Watch:
    made = Watch(os.getpid())
    made.times = [n * every_s for n in range(len(resident))]
    made.memory = [Memory(resident=value, peak=value, anonymous=value) for value in resident]
    return made


def test_growth_is_seen_after_the_server_has_settled() -> None:
    steady = watch([100 * MIB] * 10 + [300 * MIB] * 100)
    assert steady.growth(10.0) == pytest.approx((0.0, 0.0), abs=1.0)
    growing = watch([100 * MIB + n * MIB for n in range(600)])
    growth, per_hour = growing.growth(0.0)
    assert growth / MIB == pytest.approx(540, abs=2)  # from the first minute's median to the last's
    assert per_hour / MIB == pytest.approx(3600, abs=1)


def test_a_watch_reads_a_real_process() -> None:
    with Watch(os.getpid(), every_s=0.01) as made:
        time.sleep(0.1)
    assert len(made.memory) >= 3
    assert all(value > 1 << 20 for value in made.resident)


def overloaded(status: list[int], took: list[float]) -> experiment.Special:
    found = outcome([0] * len(status), status, took, wall_s=1.0)
    return overload.judged(
        found,
        watch([MIB] * 30),
        scenario="mixed",
        tokens=[7],
        capacity=10.0,
        capacity_tokens=70.0,
        rate=40.0,
        seconds=1.0,
        after=10.0,
    )


def test_an_overload_with_quick_refusals_and_full_goodput_passes() -> None:
    found = overloaded([200] * 10 + [429] * 30, [0.5] * 10 + [0.001] * 30)
    assert [check.passed for check in found.checks] == [True, True, True, True]


@pytest.mark.parametrize(
    ("status", "took", "fails"),
    [
        ([200] * 9 + [429] * 30, [0.5] * 9 + [0.001] * 30, "goodput"),
        ([200] * 10 + [429] * 30, [1.5] * 10 + [0.001] * 30, "goodput"),  # answered after the load had ended
        ([200] * 10 + [429] * 30, [0.5] * 10 + [0.051] * 30, "refusals"),
        ([200] * 10 + [429] * 29 + [503], [0.5] * 10 + [0.001] * 30, "refusals"),
        ([200] * 10 + [429] * 29 + [0], [0.5] * 10 + [0.001] * 30, "refusals"),
        ([200] * 40, [0.5] * 40, "refusals"),  # nothing was refused: it was no overload
    ],
)
def test_an_overload_that_goes_wrong_fails(status: list[int], took: list[float], fails: str) -> None:
    assert [c.name for c in overloaded(status, took).checks if not c.passed] == [f"overload, mixed: {fails}"]


def test_a_fifo_pads_what_sorting_does_not() -> None:
    lengths = [10, 500] * 50
    assert padding.fifo_waste(lengths, 10) == pytest.approx(1 - 255 / 500)
    assert padding.fifo_waste(sorted(lengths), 10) == 0.0
    assert padding.fifo_waste([], 4) == 0.0


def test_phases_are_read_from_the_servers_log() -> None:
    log = "INFO Phase load took 0.20 s\nPhase prove took 1.00 s\nother\nPhase load took 0.30 s\n"
    assert start_and_size.phases(log) == {"load": 0.5, "prove": 1.0}


def test_a_start_is_timed_phase_by_phase(embed_dist: Path, tmp_path: Path) -> None:
    found = start_and_size.measure(embed_dist, tmp_path, tmp_path / "cache")
    assert 0 < found.live_s <= found.ready_s
    assert {"manifest", "load", "prove", "warm-up"} <= set(found.phases)
    assert sum(found.phases.values()) < found.ready_s
    assert found.memory.resident > 20 * MIB
    rows = dict(row for row in start_and_size.start_table([found]).rows if len(row) == 2)
    assert rows["ready, from the start of its process"] == f"{found.ready_s:.2f} s"


def test_layers_are_listed_from_the_builds_images(tmp_path: Path) -> None:
    layers = '[{"what": "base", "size_bytes": 1048576}, {"what": "app", "size_bytes": 2097152}]'
    (tmp_path / "images.json").write_text(f'[{{"reference": "a/b:1", "layers": {layers}}}]')
    (table,) = start_and_size.size_tables(tmp_path, "b")
    assert table.rows == (("base", "1.0 MiB"), ("app", "2.0 MiB"), ("together", "3 MiB"))


def test_a_server_that_does_not_start_shows_the_end_of_its_log(tmp_path: Path) -> None:
    command = ["sh", "-c", "echo the reason; exit 3"]
    with (
        pytest.raises(EngineryError, match=r"ended with 3:\nthe reason"),
        processes.started(command, 1, "/", tmp_path / "log", {}),
    ):
        pass


def test_a_folder_without_a_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(EngineryError, match="run enginery build first"):
        processes.serving_environment(tmp_path, 1)


@pytest.mark.slow
def test_overload_padding_and_soak_run_against_a_real_server(
    embed_dist: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(overload, "CAPACITY_S", 0.3)
    on = experiment.ground(embed_dist, tmp_path, lambda _: None)
    flooded = overload.run(on, seconds=2.0, times=3.0, scenario="query-20")
    assert [c.passed for c in flooded.checks if c.name.endswith("wrong or swapped vectors")] == [True]
    padded = padding.run(on, seconds=2.0)
    assert {table.title.partition(":")[0] for table in padded.tables} == {"Padding", "Starvation"}
    assert np.isfinite(float(padded.checks[0].found.split("%")[0]))
    soaked = soak.run(on, minutes=0.1)
    assert soaked.checks[1].passed, soaked.checks[1].found
