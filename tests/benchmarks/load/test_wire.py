"""HTTP as bytes: an answer is found whole however it is cut into pieces, and nothing else is taken for one."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.load.wire import Answer, AnswerReader, BrokenAnswer, request_bytes

BODY = b'{"data": [1, 2, 3], "text": "\\r\\n\\r\\n"}'
WHOLE = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n" % len(BODY) + BODY
CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\n%b\r\n%x;x=y\r\n%b\r\n0\r\n\r\n" % (
    BODY[:5],
    len(BODY) - 5,
    BODY[5:],
)


@given(st.lists(st.integers(1, 140), max_size=6), st.sampled_from([WHOLE, CHUNKED]))
def test_an_answer_is_found_however_it_is_cut(cuts: list[int], data: bytes) -> None:
    reader, bounds = AnswerReader(), sorted({0, len(data), *(cut for cut in cuts if cut < len(data))})
    pieces = [data[low:high] for low, high in itertools.pairwise(bounds)]
    answers = [reader.feed(piece) for piece in pieces]
    assert answers[:-1] == [None] * (len(pieces) - 1)
    assert answers[-1] == Answer(200, BODY, True)


def test_a_reader_takes_one_answer_after_another() -> None:
    reader = AnswerReader()
    refused = b"HTTP/1.1 429 Too Many Requests\r\ncontent-length: 0\r\nconnection: close\r\n\r\n"
    assert [reader.feed(data) for data in (WHOLE, CHUNKED, WHOLE, refused)] == [
        Answer(200, BODY, True),
        Answer(200, BODY, True),
        Answer(200, BODY, True),
        Answer(429, b"", False),
    ]


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"SSH-2.0-OpenSSH\r\ncontent-length: 0\r\n\r\n", "not an HTTP answer"),
        (b"HTTP/1.1 200 OK\r\n\r\n", "neither its length nor that it is chunked"),
        (b"HTTP/1.1 200 OK\r\ncontent-length: -1\r\n\r\n", "Invalid character in Content-Length"),
        (WHOLE + b"HTTP", "more bytes came than the answer has"),
        (b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\nzz\r\n0\r\n\r\n", "Invalid character in chunk size"),
    ],
)
def test_what_is_no_answer_is_refused(data: bytes, reason: str) -> None:
    with pytest.raises(BrokenAnswer, match=reason):
        AnswerReader().feed(data)


def test_a_request_says_its_length_and_carries_headers() -> None:
    request = request_bytes("host:1", "/v1/x", "é".encode(), {"authorization": "Bearer k"})
    head, _, body = request.partition(b"\r\n\r\n")
    assert body == "é".encode()
    assert head.splitlines()[0] == b"POST /v1/x HTTP/1.1"
    assert {b"host: host:1", b"content-length: 2", b"authorization: Bearer k"} <= set(head.splitlines())
