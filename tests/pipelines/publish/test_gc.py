"""Collecting a bucket: exactly the garbage goes, whatever is published at the same time."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from blake3 import blake3

from pipelines.errors import PublishError
from pipelines.inspect import resolve
from pipelines.publish import gc, to_bucket
from pipelines.publish.dispatch import publish
from pipelines.remote.bucket import Bucket
from serving.contract import manifest
from tests.support import servers
from tests.support import swift as swifts
from tests.support.buckets import LARGE, client, current
from tests.support.published import packaged, run
from tests.support.s3_proxy import Proxy, in_front_of

GRACE = timedelta(days=7)


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with servers.s3(tmp_path_factory.mktemp("moto"), {}) as found:
        yield found


@pytest.fixture
def proxy(url: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Proxy]:
    with in_front_of(url) as found:
        for name, value in {**servers.KEYS, "AWS_ENDPOINT_URL": found.url}.items():
            monkeypatch.setenv(name, value)
        yield found


@pytest.fixture
def place(request: pytest.FixtureRequest) -> str:
    return f"s3://mirror/{blake3(request.node.nodeid.encode()).hexdigest()[:12]}"


def later(days: float) -> datetime:
    return datetime.now(UTC) + timedelta(days=days)


def folders(tmp_path: Path, num: int = 3) -> list[Path]:
    return [packaged(tmp_path / str(n), {"8.9-fp8": f"{n}".encode()}, release=f"1.{n}.0") for n in range(num)]


def engine(folder: Path) -> str:
    """The key of the file in which the folders differ."""
    profiles = manifest.read(folder / "model_manifest.yaml").profiles
    return next(p for p in profiles if p.name == "tiny__l40s__fp8__tp1").file("engine.plan").uri


def keys(place: str) -> set[str]:
    return {one.key for one in Bucket(place).objects("")}


def test_what_only_old_releases_need_goes_and_nothing_else(proxy: Proxy, url: str, place: str, tmp_path: Path) -> None:
    made = folders(tmp_path)
    for each in made:
        publish(each, place)
    before = keys(place)
    found = gc.collect(place, keep=2, grace=GRACE, now=later(8))
    gone = before - keys(place)
    assert {one.key for one in found.removed} == gone
    assert engine(made[0]) in gone
    assert len(gone) == 3  # the engine, the manifest and the release that name it
    assert [entry.release for entry in found.dropped["tiny"]] == ["1.0.0"]
    assert current(url, servers.KEYS, place) == "1.2.0"
    to_bucket.read(Bucket(place), found.kept["tiny"][1].digest)


def test_nothing_goes_before_its_time(proxy: Proxy, place: str, tmp_path: Path) -> None:
    for each in folders(tmp_path):
        publish(each, place)
    before = keys(place)
    found = gc.collect(place, keep=1, grace=GRACE, now=later(6))
    assert (found.removed, keys(place)) == ((), before)
    assert len(found.kept["tiny"]) == 3  # young releases stay, however few are to be kept


def test_what_another_model_needs_stays(proxy: Proxy, url: str, place: str, tmp_path: Path) -> None:
    first, second, _ = folders(tmp_path)
    same = packaged(tmp_path / "other", {"8.9-fp8": b"0"}, model="other")
    for each in (first, same, second):
        publish(each, place)
    assert engine(first) in keys(place)
    gc.collect(place, keep=1, grace=GRACE, now=later(8))
    assert engine(first) in keys(place)
    assert current(url, servers.KEYS, place, "other") == "1.0.0"


def test_a_dry_run_says_what_would_go_and_removes_nothing(proxy: Proxy, place: str, tmp_path: Path) -> None:
    for each in folders(tmp_path):
        publish(each, place)
    before = keys(place)
    found = gc.collect(place, keep=1, grace=GRACE, dry_run=True, now=later(8))
    assert keys(place) == before
    said = gc.text(found, dry_run=True)
    assert "tiny: keeps 1.2.0 (@3)" in said
    assert "drops 1.0.0 (@1" in said
    assert "would remove 6 objects" in said


def test_blobs_of_a_publication_in_progress_stay_since_they_are_young(proxy: Proxy, place: str, tmp_path: Path) -> None:
    """Sent, and not yet named by any release."""
    first, second, _ = folders(tmp_path)
    publish(first, place)
    sent = list[set[str]]()

    def collect_now(_: int, line: str) -> None:
        if line.startswith("PUT") and "latest.json" in line:
            proxy.before = lambda *_: None
            found = gc.collect(place, keep=1, grace=GRACE)
            sent.append({one.key for one in found.too_young})

    proxy.before = collect_now
    publish(second, place)
    (young,) = sent
    assert engine(second) in young
    assert engine(second) in keys(place)


def test_a_publication_that_relies_on_an_old_file_has_made_it_young(
    proxy: Proxy, url: str, place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The collector listed it as old; before it comes to remove it, a publisher wants it, and sends it again."""
    first, second, _ = folders(tmp_path)
    publish(first, place)
    publish(second, place)
    time.sleep(1.1)  # S3 says to the second when something was written
    written = datetime.now(UTC).replace(microsecond=0) - timedelta(seconds=0.5)
    monkeypatch.setattr(to_bucket, "FRESH", timedelta(0))
    published = list[int]()

    def publish_first_again(_: int, line: str) -> None:
        if line.startswith("HEAD") and engine(first) in line and not published:
            published.append(1)
            proxy.before = lambda *_: None
            publish(first, place)

    proxy.before = publish_first_again
    # On a clock on which the second before `written` was a grace age ago, and the second after was not.
    gc.collect(place, keep=1, grace=GRACE, now=written + GRACE)
    assert published
    assert current(url, servers.KEYS, place) == "1.0.0"


def test_a_release_published_while_garbage_is_sought_makes_the_collector_look_again(
    proxy: Proxy, url: str, place: str, tmp_path: Path
) -> None:
    first, second, third = folders(tmp_path)
    publish(first, place)
    publish(second, place)
    published = list[int]()

    def publish_meanwhile(_: int, line: str) -> None:
        if line.startswith("GET") and "list-type" in line and "blobs" in line and not published:
            published.append(1)
            proxy.before = lambda *_: None
            publish(third, place)

    proxy.before = publish_meanwhile
    said = list[str]()
    gc.collect(place, keep=1, grace=GRACE, log=said.append, now=later(8))
    assert said == ["somebody published meanwhile: looking again"]
    assert current(url, servers.KEYS, place) == "1.2.0"
    assert engine(second) not in keys(place)


def test_nothing_goes_while_the_current_release_is_damaged(proxy: Proxy, place: str, tmp_path: Path) -> None:
    for each in folders(tmp_path):
        publish(each, place)
    pointer = gc._pointers(Bucket(place))["tiny"][0]
    Bucket(place).put(to_bucket.document_key(pointer.current.digest), b"{}")
    before = keys(place)
    with pytest.raises(PublishError, match="nothing is removed while the current release of tiny is damaged"):
        gc.collect(place, keep=1, grace=GRACE, now=later(8))
    assert keys(place) == before


def test_a_collection_may_be_killed_anywhere(proxy: Proxy, url: str, place: str, tmp_path: Path) -> None:
    for each in folders(tmp_path):
        publish(each, place)
    script = (
        "import sys; from datetime import *; from pipelines.publish import gc; "
        "gc.collect(sys.argv[1], keep=1, grace=timedelta(days=7), now=datetime.now(UTC) + timedelta(days=8))"
    )
    for number in range(8, 200, 2):
        proxy.seen.clear()
        collector = subprocess.Popen([sys.executable, "-c", script, place], stderr=subprocess.DEVNULL)

        def kill(count: int, _: str, number: int = number, collector: subprocess.Popen[bytes] = collector) -> None:
            if count == number:
                collector.kill()
                collector.wait(30)

        proxy.after = kill
        if collector.wait(60) == 0:
            break
        assert current(url, servers.KEYS, place) == "1.2.0"
        for back in (1, 2):  # an older one is whole, or is said to be gone
            with suppress(PublishError):
                found = resolve.read(f"{place}/tiny~{back}")
                assert set(found.release.files) <= keys(place)
    assert number > 14
    assert len(keys(place)) == 6 + 2 + 1  # files, documents, pointer
    assert (
        run("inspect", f"{place}/tiny~1", environ={}).returncode == 19
    )  # its history is remembered, its bytes are gone


@swifts.needs_swift
def test_an_upload_that_nobody_ended_goes(
    swift_url: str,
    place: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name, value in {**swifts.KEYS, "AWS_ENDPOINT_URL": swift_url}.items():
        monkeypatch.setenv(name, value)
    publish(packaged(tmp_path), place, guarded=False)
    s3, prefix = client(swift_url, swifts.KEYS), place.removeprefix("s3://mirror/")
    begun = s3.create_multipart_upload(Bucket="mirror", Key=f"{prefix}/blobs/blake3/aa")["UploadId"]
    s3.upload_part(Bucket="mirror", Key=f"{prefix}/blobs/blake3/aa", UploadId=begun, PartNumber=1, Body=LARGE)
    assert gc.collect(place, keep=1, grace=GRACE, now=later(6)).uploads == ()
    assert gc.collect(place, keep=1, grace=GRACE, now=later(8)).uploads == ("blobs/blake3/aa",)
    assert not s3.list_multipart_uploads(Bucket="mirror", Prefix=prefix).get("Uploads")
    assert current(swift_url, swifts.KEYS, place) == "1.0.0"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--grace", "1h"), "at least 24 h"),
        (("--grace", "soon"), "is not an age such as 7d or 36h"),
        (("--keep", "0"), "--keep must be at least 1"),
        ((), "no place that `enginery publish` wrote to"),
    ],
)
def test_what_cannot_be_collected_safely_is_refused(
    arguments: tuple[str, ...], words: str, proxy: Proxy, place: str
) -> None:
    done = run("gc", "--to", place, *arguments, environ={})
    assert done.returncode == 19
    assert words in done.stderr
