"""Damage of every kind is refused before anything parses the bytes."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from blake3 import blake3

from serving.cache.fetch import fetch
from serving.cache.places import Places
from serving.contract.profile import Profile, ProfileFile
from serving.errors import CacheError

CONTENTS = {"engine.plan": b"engine" * 1000, "tokenizer.json": b"{}", "sub/proof.json": b""}


def blob(data: bytes) -> str:
    return f"blobs/blake3/{blake3(data).hexdigest()}"


def entry(path: str, data: bytes, uri: str | None = None) -> ProfileFile:
    checksum = f"blake3:{blake3(data).hexdigest()}"
    return ProfileFile(path=path, uri=uri or blob(data), checksum=checksum, size_bytes=len(data))


def a_profile(*files: ProfileFile) -> Profile:
    return Profile(id="a" * 64, name="mini__cpu__fp32__tp1", tags={}, files=files, proof_min_cosine=0.98)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """An image root that holds CONTENTS."""
    root = tmp_path / "root with space"
    fill(root)
    return root


def fill(root: Path) -> None:
    for data in CONTENTS.values():
        path = root / blob(data)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)


WHOLE = a_profile(*(entry(path, data) for path, data in CONTENTS.items()))
ENGINE = blob(CONTENTS["engine.plan"])


def refused(profile: Profile, root: Path, override: str | None = None) -> str:
    with pytest.raises(CacheError) as caught:
        fetch(profile, Places(root=root, repository=override))
    return str(caught.value)


def test_a_whole_profile_gives_its_bytes_by_name(root: Path) -> None:
    assert fetch(WHOLE, Places(root=root)) == CONTENTS


def test_a_relative_root_works(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(root.parent)
    assert fetch(WHOLE, Places(root=Path(root.name))) == CONTENTS


@pytest.mark.parametrize("place", [0, 2999, 5999])
def test_a_flipped_byte_is_refused_with_both_digests(root: Path, place: int) -> None:
    path = root / ENGINE
    data = bytearray(path.read_bytes())
    data[place] ^= 1
    path.write_bytes(data)
    message = refused(WHOLE, root)
    assert (
        f"hashes to blake3:{blake3(bytes(data)).hexdigest()} where the manifest says {WHOLE.files[0].checksum}"
        in message
    )
    assert "mini__cpu__fp32__tp1" in message
    assert "pull the image again" in message


def test_a_missing_file_is_named(root: Path) -> None:
    (root / ENGINE).unlink()
    message = refused(WHOLE, root)
    assert "engine.plan" in message
    assert "is missing" in message


def test_a_truncated_file_is_refused_by_its_length(root: Path) -> None:
    os.truncate(root / ENGINE, 100)
    assert "has 100 bytes where the manifest says 6000" in refused(WHOLE, root)


def test_a_file_with_bytes_added_is_refused(root: Path) -> None:
    with (root / ENGINE).open("ab") as stream:
        stream.write(b"!")
    assert "has 6001 bytes where the manifest says 6000" in refused(WHOLE, root)


def test_two_files_of_one_length_that_were_swapped_are_refused(root: Path) -> None:
    one, other = b"engine of model one", b"engine of model two"
    for data, place in ((one, other), (other, one)):
        (root / blob(place)).write_bytes(data)
    assert refused(a_profile(entry("a", one), entry("b", other)), root).count("hashes to") == 2


def test_every_bad_file_is_listed(root: Path) -> None:
    (root / ENGINE).unlink()
    (root / blob(b"{}")).write_bytes(b"[]")
    message = refused(WHOLE, root)
    assert "engine.plan" in message
    assert "tokenizer.json" in message
    assert "proof.json" not in message


def test_a_size_that_the_manifest_does_not_give_is_not_compared_but_the_digest_is(root: Path) -> None:
    unsized = ProfileFile(path="e", uri=ENGINE, checksum=WHOLE.files[0].checksum, size_bytes=-1)
    assert fetch(a_profile(unsized), Places(root=root)) == {"e": CONTENTS["engine.plan"]}
    os.truncate(root / ENGINE, 100)
    assert "hashes to" in refused(a_profile(unsized), root)


def test_a_link_out_of_the_root_is_refused_though_its_bytes_are_right(root: Path) -> None:
    outside = root.parent / "outside"
    (root / ENGINE).rename(outside)
    (root / ENGINE).symlink_to(outside)
    assert "is a link that leads out of" in refused(WHOLE, root)


def test_a_folder_that_links_out_of_the_root_is_refused(root: Path) -> None:
    (root / "blobs").rename(root.parent / "elsewhere")
    (root / "blobs").symlink_to(root.parent / "elsewhere")
    assert refused(WHOLE, root).count("is a link that leads out of") == 3


def test_links_within_the_root_and_to_the_root_work(root: Path) -> None:
    """Kubernetes mounts volumes as links to a dated folder."""
    (root / "blobs").rename(root / "..2026_data")
    (root / "blobs").symlink_to("..2026_data")
    link = root.parent / "link"
    link.symlink_to(root)
    assert fetch(WHOLE, Places(root=link)) == CONTENTS


def test_a_loop_of_links_is_refused(root: Path) -> None:
    (root / ENGINE).unlink()
    (root / ENGINE).symlink_to(root / ENGINE)
    assert "cannot be read" in refused(WHOLE, root)


@pytest.mark.parametrize("uri", ["../secret", "blobs/../../secret", "blobs/%2e%2e/../../secret"])
def test_a_relative_uri_that_climbs_out_is_refused_even_without_the_manifest_check(root: Path, uri: str) -> None:
    (root.parent / "secret").write_bytes(b"s")
    assert "holds '..'" in refused(a_profile(entry("x", b"s", uri)), root)


@pytest.mark.timeout(5)
def test_a_named_pipe_is_refused_and_does_not_hang(root: Path) -> None:
    (root / ENGINE).unlink()
    os.mkfifo(root / ENGINE)
    assert "is not a regular file" in refused(WHOLE, root)


def test_a_folder_is_refused(root: Path) -> None:
    (root / ENGINE).unlink()
    (root / ENGINE).mkdir()
    assert "is not a regular file" in refused(WHOLE, root)


@pytest.fixture
def another_user() -> Iterator[int]:
    """Root may read everything, so become nobody for the length of a test."""
    before = os.geteuid()
    if before == 0:
        os.seteuid(65534)
    yield os.geteuid()
    os.seteuid(before)


def test_a_file_that_may_not_be_read_names_user_owner_and_mode(request: pytest.FixtureRequest) -> None:
    with tempfile.TemporaryDirectory() as folder:  # pytest's own folders are closed to other users
        Path(folder).chmod(0o755)
        path = Path(folder, "engine")
        path.write_bytes(b"x")
        path.chmod(0o200)
        owner = path.stat().st_uid
        user = request.getfixturevalue("another_user")
        message = refused(a_profile(entry("e", b"x", "engine")), Path(folder))
        assert f"may not be read by user {user}: owner {owner}:" in message
        assert "mode 0200; make it readable" in message
        os.seteuid(owner)


def test_an_absolute_file_uri_is_read_from_where_it_says(root: Path, tmp_path: Path) -> None:
    path = tmp_path / "an engine#1"
    path.write_bytes(b"x")
    assert fetch(a_profile(entry("e", b"x", path.as_uri())), Places(root=root)) == {"e": b"x"}


def test_a_mirror_replaces_the_root_for_relative_uris(root: Path, tmp_path: Path) -> None:
    mirror = tmp_path / "mirror"
    fill(mirror)
    for override in (mirror.as_uri(), mirror.as_uri() + "/"):
        assert fetch(WHOLE, Places(root=tmp_path / "none", repository=override)) == CONTENTS
    (mirror / ENGINE).unlink()
    assert f"{mirror.as_uri()}/{ENGINE} is missing" in refused(WHOLE, tmp_path / "none", mirror.as_uri())


def test_what_is_embedded_is_read_there_though_a_mirror_is_named(root: Path) -> None:
    for override in ("file:///nowhere", "https://nobody.invalid/x", "s3://nowhere", "oci://nobody.invalid/x:1"):
        assert fetch(WHOLE, Places(root=root, repository=override)) == CONTENTS


@pytest.mark.parametrize("uri", ["ngc://org/team/model:1?file=x", "hf://org/model", "ftp://host/x"])
def test_a_source_that_is_not_read_is_named_with_those_that_are(root: Path, uri: str) -> None:
    message = refused(a_profile(entry("e", b"x", uri)), root)
    assert f"{uri.partition('://')[0]}:// is not a source that this server reads (file://, https://, " in message


def test_a_mirror_of_an_unread_scheme_is_refused(tmp_path: Path) -> None:
    assert refused(WHOLE, tmp_path, "ngc://org/team").count("ngc:// is not a source") == 3


def test_a_file_that_is_nowhere_says_where_it_was_looked_for_and_what_to_set(tmp_path: Path) -> None:
    with pytest.raises(CacheError) as caught:
        fetch(WHOLE, Places(root=tmp_path / "root", cache_path=tmp_path / "cache"))
    for words in (str(tmp_path / "root"), str(tmp_path / "cache"), "is missing", "set NIM_REPOSITORY_OVERRIDE"):
        assert words in str(caught.value)
    assert not (tmp_path / "cache").exists()


def test_a_cached_file_is_read_and_its_source_is_not_asked(tmp_path: Path) -> None:
    fill(tmp_path / "cache")
    for override in (None, "https://nobody.invalid/x"):
        cached = fetch(WHOLE, Places(root=tmp_path / "root", cache_path=tmp_path / "cache", repository=override))
        assert cached == CONTENTS


def test_a_damaged_file_of_a_cache_without_a_source_is_refused_and_stays(tmp_path: Path) -> None:
    fill(tmp_path / "cache")
    (tmp_path / "cache" / ENGINE).write_bytes(b"x" * 6000)
    with pytest.raises(CacheError, match=f"{ENGINE} hashes to .*; remove it and run download-to-cache"):
        fetch(WHOLE, Places(root=tmp_path / "root", cache_path=tmp_path / "cache"))
    assert (tmp_path / "cache" / ENGINE).is_file()


def test_downloads_that_are_forbidden_are_not_tried(tmp_path: Path) -> None:
    with pytest.raises(CacheError, match="NIM_DISABLE_MODEL_DOWNLOAD is set"):
        fetch(
            WHOLE, Places(root=tmp_path, cache_path=tmp_path, repository="https://nobody.invalid/x", may_download=False)
        )


def test_a_file_uri_with_a_host_says_how_to_write_it(root: Path) -> None:
    assert "file:///mnt/x" in refused(a_profile(entry("e", b"x", "file://mnt/x")), root)
