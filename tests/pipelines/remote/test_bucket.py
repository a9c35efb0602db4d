"""The client of a bucket: listings and streams that break are messages, and large files go by TLS to any S3 server."""

from __future__ import annotations

import ssl
from collections.abc import Iterator
from pathlib import Path

import pytest
from blake3 import blake3

from pipelines.errors import PublishError, UnreachableError
from pipelines.remote.bucket import Bucket, Damaged, _Checked
from tests.support import servers
from tests.support import swift as swifts
from tests.support.buckets import LARGE
from tests.support.s3_proxy import Proxy, in_front_of


@pytest.fixture
def proxy(moto_url: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Proxy]:
    with in_front_of(moto_url) as running:
        for name, value in {**servers.KEYS, "AWS_ENDPOINT_URL": running.url}.items():
            monkeypatch.setenv(name, value)
        yield running


def test_a_bucket_that_cannot_be_listed_is_a_message(proxy: Proxy) -> None:
    with pytest.raises(PublishError, match=r"NoSuchBucket.*make the bucket first"):
        list(Bucket("s3://nowhere/x").objects(""))
    with pytest.raises(PublishError, match=r"NoSuchBucket.*make the bucket first"):
        Bucket("s3://nowhere/x").uploads("")


def test_a_listing_that_breaks_off_on_its_second_page_is_a_message(proxy: Proxy) -> None:
    bucket = Bucket("s3://mirror/listed")
    for number in range(3):
        bucket.put(f"{number}", b"")
    bucket._client.meta.events.register(
        "provide-client-params.s3.ListObjectsV2", lambda params, **_: params | {"MaxKeys": 2}
    )
    proxy.loses = lambda line: "continuation-token" in line
    listed = bucket.objects("")
    assert [next(listed).key for _ in range(2)] == ["0", "1"]
    with pytest.raises(UnreachableError, match="look at AWS_ENDPOINT_URL"):
        next(listed)


def test_a_stream_that_breaks_off_is_a_message(proxy: Proxy, tmp_path: Path) -> None:
    bucket = Bucket("s3://mirror/streamed")
    bucket.put("large", LARGE)
    (large,) = bucket.objects("")
    proxy.cut = lambda line: line.startswith("GET")
    with pytest.raises(UnreachableError, match="look at AWS_ENDPOINT_URL"):
        bucket.get("large", len(LARGE))
    with pytest.raises(UnreachableError, match="look at AWS_ENDPOINT_URL"):
        bucket.get_file(large, tmp_path / "large")


def test_a_file_is_read_as_it_was_listed(proxy: Proxy, tmp_path: Path) -> None:
    bucket = Bucket("s3://mirror/changing")
    bucket.put("file", b"one")
    (listed,) = bucket.objects("")
    bucket.get_file(listed, tmp_path / "file")
    assert (tmp_path / "file").read_bytes() == b"one"
    bucket.put("file", b"two")
    with pytest.raises(PublishError, match="changed while it was read"):
        bucket.get_file(listed, tmp_path / "file")


def test_the_last_bytes_of_a_file_that_changed_are_never_handed_over(tmp_path: Path) -> None:
    """Its first bytes may be with the server by then; an upload in parts is not ended without the last."""
    path = tmp_path / "engine"
    for data in (b"as it is!", b"as it was, and more", b"as it"):
        path.write_bytes(b"as it was")
        with path.open("rb", buffering=0) as file:
            source = _Checked(path, file, 9, blake3(b"as it was").hexdigest())
            assert source.read(5) == b"as it"
            path.write_bytes(data)
            with pytest.raises(Damaged, match="run the build again"):
                source.read(5)


@swifts.needs_swift
def test_a_large_file_goes_by_tls_to_a_server_that_knows_no_newer_checksums(
    swift_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    certificate, key = servers.certificate(tmp_path)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    (path := tmp_path / "engine").write_bytes(LARGE)
    with in_front_of(swift_url, context) as proxy:
        for name, value in {**swifts.KEYS, "AWS_ENDPOINT_URL": proxy.url, "AWS_CA_BUNDLE": str(certificate)}.items():
            monkeypatch.setenv(name, value)
        bucket = Bucket("s3://mirror/by-tls")
        assert bucket.put_file("engine", path, blake3(LARGE).hexdigest()) == len(LARGE)
        bucket.put("small", b"{}")
        assert {listed.key: listed.size_bytes for listed in bucket.objects("")} == {"engine": len(LARGE), "small": 2}
        proxy.damage = lambda line, body: body[:-1] + b"!" if "partNumber=2" in line else body
        with pytest.raises(PublishError, match="400"):
            bucket.put_file("damaged", path, blake3(LARGE).hexdigest())
        assert bucket.head("damaged") is None
