"""Estimated lengths: texts cut by words, and the tokens that a server counts in them shared out."""

from __future__ import annotations

from dataclasses import replace

from benchmarks.scenarios.estimated_lengths import WordCorpus, counted
from benchmarks.scenarios.scenarios import by_name, make
from benchmarks.servers.endpoint import Endpoint
from tests.support import bench_server


def test_without_a_tokenizer_texts_are_cut_by_words() -> None:
    texts = WordCorpus(1.5).texts([32, 152, 5])
    assert [len(text.split()) for text in texts] == [20, 100, 2]


def test_the_servers_count_of_a_request_is_shared_out_among_its_texts() -> None:
    (mixed,) = by_name(["mixed"])
    requests = make(replace(mixed, num_requests=8), WordCorpus(1.0), max_tokens=200)
    with bench_server.serve() as nim:
        recounted = counted(Endpoint(url=nim.url, model=bench_server.MODEL), requests)
    words = [[len(text.split()) for text in texts] for texts in recounted.texts]  # the server counts those
    assert recounted.num_tokens == tuple(sum(lengths) for lengths in words)
    flat = [length for lengths in words for length in lengths]
    differences = [abs(length - count) for length, count in zip(recounted.lengths, flat, strict=True)]
    assert max(differences) <= 3  # two special tokens, which this server does not count, and rounding
    assert abs(sum(recounted.lengths) - sum(recounted.num_tokens)) <= len(flat) / 2
    assert recounted.longest == max(recounted.lengths)
