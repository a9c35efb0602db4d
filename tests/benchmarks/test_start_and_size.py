"""A server's start, phase by phase, and its image, layer by layer."""

from __future__ import annotations

from pathlib import Path

from benchmarks import start_and_size
from benchmarks.watch.memory import MIB


def test_phases_are_read_from_the_servers_log() -> None:
    log = "INFO Phase load took 0.20 s\nPhase prove took 1.00 s\nother\nPhase load took 0.30 s\n"
    assert start_and_size.phases(log) == {"load": 0.5, "prove": 1.0}


def test_a_start_is_timed_phase_by_phase(embed_dist: Path, tmp_path: Path) -> None:
    start = start_and_size.measure(embed_dist, tmp_path, tmp_path / "cache")
    assert 0 < start.live_s <= start.ready_s
    assert {"manifest", "load", "prove", "warm-up"} <= set(start.phases)
    assert sum(start.phases.values()) < start.ready_s
    assert start.memory.resident > 20 * MIB
    rows = dict(row for row in start_and_size.start_table([start]).rows if len(row) == 2)
    assert rows["ready, from the start of its process"] == f"{start.ready_s:.2f} s"


def test_layers_are_listed_from_the_builds_images(tmp_path: Path) -> None:
    layers = '[{"what": "base", "size_bytes": 1048576}, {"what": "app", "size_bytes": 2097152}]'
    (tmp_path / "images.json").write_text(f'[{{"reference": "a/b:1", "layers": {layers}}}]')
    (table,) = start_and_size.size_tables(tmp_path, "b")
    assert table.rows == (("base", "1.0 MiB"), ("app", "2.0 MiB"), ("together", "3 MiB"))
