"""Where a file is looked for: its address at a source, and which place goes first."""

from __future__ import annotations

from pathlib import Path

import pytest
from blake3 import blake3

from serving.cache import local
from serving.cache.places import Finder, Places, locate
from serving.cache.sources.base import Location, SourceError
from serving.contract.profile import ProfileFile

DATA = b"engine"
FILE = ProfileFile(
    path="engine.onnx", uri="blobs/a b#1", checksum=f"blake3:{blake3(DATA).hexdigest()}", size_bytes=len(DATA)
)


@pytest.mark.parametrize("repository", ["https://host/mirror", "https://host/mirror/"])
def test_a_relative_address_is_quoted_and_stays_within_its_repository(repository: str) -> None:
    base = "https://host/mirror"
    assert locate(FILE, repository) == Location(uri=f"{base}/blobs/a%20b%231", within=base)


def test_an_absolute_address_stays_as_the_manifest_writes_it() -> None:
    file = ProfileFile(path="e", uri="s3://bucket/a b", checksum=FILE.checksum, size_bytes=1)
    assert locate(file, "https://host/mirror") == Location(uri="s3://bucket/a b")


def test_a_file_is_taken_from_the_first_place_that_has_it(tmp_path: Path) -> None:
    places = Places(
        root=tmp_path / "root", cache_path=tmp_path / "cache", repository=(tmp_path / "mirror").absolute().as_uri()
    )
    embedded, cached, source = (
        places.root / FILE.uri,
        local.blob(tmp_path / "cache", FILE),
        tmp_path / "mirror" / FILE.uri,
    )
    for path in (embedded, cached, source):
        path.parent.mkdir(parents=True)
        path.write_bytes(DATA)
    finder = Finder(places, lambda message: None)
    assert finder.verified(FILE) == "embedded in the image"
    embedded.unlink()
    assert finder.verified(FILE) == "in the cache"
    cached.write_bytes(b"damage")
    assert finder.verified(FILE) is None
    assert finder.bytes_of(FILE) == DATA
    source.unlink()
    with pytest.raises(SourceError, match="is missing"):
        finder.bytes_of(FILE)
