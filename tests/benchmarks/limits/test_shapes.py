"""Batches for the engine alone: packed, of one length, or read from a server."""

from __future__ import annotations

import msgspec

from benchmarks.limits import shapes
from benchmarks.limits.shapes import packed
from benchmarks.report.results import Cell, Load
from benchmarks.scenarios import scenarios
from benchmarks.watch.scrape import Inside
from tests.support.results import figures


def test_packing_keeps_every_item_and_the_budget() -> None:
    lengths = [5, 512, 40, 41, 39, 8, 300, 300]
    batches = packed(lengths, max_tokens=600, max_items=3)
    assert sorted(length for batch in batches for length in batch) == sorted(lengths)
    assert all(len(batch) * max(batch) <= 600 and len(batch) <= 3 for batch in batches)
    assert packed([700], max_tokens=600, max_items=3) == ((700,),)
    assert packed([], max_tokens=600, max_items=3) == ()


def test_the_batch_that_the_server_ran_is_read_from_its_metrics() -> None:
    (scenario,) = scenarios.by_name(["passage-300"])
    requests = scenarios.Requests(
        scenario=scenario, texts=(), queries=(), num_items=(), num_tokens=(), longest=300, lengths=()
    )
    cell = Cell(scenario="passage-300", load=Load(concurrency=1), server="enginery", figures=figures(1))
    ran = msgspec.structs.replace(cell, inside=Inside(batch_items=12.7))
    shape = shapes.same_batch(ran, requests, max_items=64)
    assert shape is not None
    assert shape.words == "13 x 300"
    assert shapes.same_batch(cell, requests, max_items=64) is None


def test_the_batches_of_a_mixed_stream_are_read_from_the_servers_log() -> None:
    log = """2026-11-21 10:00:00,000 DEBUG batch of 3 x 48, 2.1 ms
2026-11-21 10:00:00,001 INFO request note='batch of 9 x 9,'
2026-11-21 10:00:00,002 DEBUG batch of 1 x 512, 12.0 ms
"""
    shape = shapes.batches_of(log, 2)
    assert shape.batches == ((48, 48, 48), (512,))
    assert (shape.words, shape.num_items, shape.num_streams) == ("its own 2 batches", 4, 2)
