"""Publishing to S3: what the server pulls, once; one winner; whole releases whatever is killed, lost or damaged."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from blake3 import blake3

from pipelines.errors import OvertakenError, PublishError
from pipelines.image.package import ROOT as PACKAGED
from pipelines.publish import to_bucket
from pipelines.publish.dispatch import publish
from pipelines.remote.bucket import Bucket
from serving.cache.fetch import ensure
from serving.cache.places import Places
from serving.contract import manifest
from tests.support import servers
from tests.support import swift as swifts
from tests.support.buckets import LARGE, client, current
from tests.support.published import command, packaged, run
from tests.support.s3_proxy import Proxy, in_front_of

NEW = {"8.9-fp8": LARGE, "8.9-fp16": b"new"}


@pytest.fixture
def place(request: pytest.FixtureRequest) -> str:
    """A folder of the bucket that no other test writes to."""
    return f"s3://mirror/{blake3(request.node.nodeid.encode()).hexdigest()[:12]}"


@pytest.fixture
def proxy(moto_url: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Proxy]:
    """In front of moto, whose conditional writes are atomic; this process and its children go through it."""
    with in_front_of(moto_url) as found:
        for name, value in {**servers.KEYS, "AWS_ENDPOINT_URL": found.url}.items():
            monkeypatch.setenv(name, value)
        yield found


@pytest.fixture
def swift_proxy(swift_url: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Proxy]:
    """In front of Swift, which checks what it is sent."""
    with in_front_of(swift_url) as found:
        for name, value in {**swifts.KEYS, "AWS_ENDPOINT_URL": found.url}.items():
            monkeypatch.setenv(name, value)
        yield found


@swifts.needs_swift
def test_what_is_published_is_what_a_server_pulls(
    swift_proxy: Proxy, swift_url: str, place: str, tmp_path: Path
) -> None:
    folder = packaged(tmp_path, {"8.9-fp8": LARGE})
    done = run("publish", folder, "--to", place, "--unguarded", environ={})
    assert done.returncode == 0, done.stderr
    assert "now current, number 1; 6 blobs" in done.stdout
    profiles = manifest.read(folder / "model_manifest.yaml").profiles
    places = Places(root=tmp_path / "nothing", cache_path=tmp_path / "cache", repository=place)
    assert len(ensure(profiles, places, lambda _: None)) == 6
    assert current(swift_url, swifts.KEYS, place) == "1.0.0"
    assert sum("partNumber" in line for line in swift_proxy.seen) == 2


def test_a_second_publication_writes_nothing(proxy: Proxy, place: str, tmp_path: Path) -> None:
    folder = packaged(tmp_path)
    first = publish(folder, place)
    proxy.seen.clear()
    second = publish(folder, place)
    assert proxy.writes == []
    assert (second.uploaded, second.reused, second.moved) == (0, 6, False)
    assert (second.sequence, second.digest) == (first.sequence, first.digest)


def test_a_changed_engine_is_all_that_is_sent_besides_the_documents(
    proxy: Proxy, moto_url: str, place: str, tmp_path: Path
) -> None:
    publish(packaged(tmp_path), place)
    proxy.seen.clear()
    done = publish(packaged(tmp_path / "2", {"8.9-fp8": b"other"}, release="1.0.1"), place)
    assert (done.uploaded, done.reused, done.sequence) == (1, 5, 2)
    kinds = [line.partition("?")[0].split("/")[-2:] for line in proxy.writes]
    assert [kind[0] for kind in kinds] == [
        "tiny",
        "blake3",
        "sha256",
        "sha256",
        "tiny",
    ]  # the first: does the server look at conditions?
    assert current(moto_url, servers.KEYS, place) == "1.0.1"


def test_models_share_a_bucket_and_their_files(proxy: Proxy, place: str, tmp_path: Path) -> None:
    publish(packaged(tmp_path), place)
    other = publish(packaged(tmp_path, model="other"), place)
    assert (other.uploaded, other.sequence) == (0, 1)


def test_a_file_that_may_be_about_to_be_collected_is_sent_again(
    proxy: Proxy, place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is there, old, and the current release does not need it: only its age keeps a collector from it."""
    first = packaged(tmp_path, {"8.9-fp8": b"first"})
    publish(first, place)
    publish(packaged(tmp_path / "2", {"8.9-fp8": b"second"}), place)
    monkeypatch.setattr(to_bucket, "FRESH", timedelta(0))
    assert publish(first, place).uploaded == 1


def test_of_two_publishers_at_once_one_wins_and_the_other_is_refused(
    proxy: Proxy, moto_url: str, place: str, tmp_path: Path
) -> None:
    publish(packaged(tmp_path / "0"), place)
    both = threading.Barrier(2)

    def wait_for_the_other(_: int, line: str) -> None:
        if line.startswith("PUT") and "latest.json" in line:
            both.wait(60)

    proxy.before = wait_for_the_other
    folders = [packaged(tmp_path / name, {"8.9-fp8": name.encode()}, release=name) for name in ("1.1.0", "1.2.0")]
    racing = [command("publish", folder, "--to", place, environ={}) for folder in folders]
    ended = [(each.communicate(timeout=120), each.returncode) for each in racing]
    assert sorted(code for _, code in ended) == [0, 20], ended
    ((_, refusal), _), winner = (
        next(e for e in ended if e[1] == 20),
        next(i for i, e in enumerate(ended) if e[1] == 0),
    )
    assert "somebody else published meanwhile; now current: " + ("1.1.0", "1.2.0")[winner] in refusal
    assert current(moto_url, servers.KEYS, place) == ("1.1.0", "1.2.0")[winner]


def test_of_two_first_publishers_one_wins(proxy: Proxy, moto_url: str, place: str, tmp_path: Path) -> None:
    both, results = threading.Barrier(2), list[str]()
    proxy.before = lambda _, line: both.wait(60) and None if line.startswith("PUT") and "latest.json" in line else None

    def one(name: str, folder: Path) -> None:
        try:
            publish(folder, place)
            results.append(f"won {name}")
        except OvertakenError:
            results.append(f"lost {name}")

    folders = {name: packaged(tmp_path / name, {"8.9-fp8": name.encode()}, release=name) for name in ("1.0.0", "2.0.0")}
    threads = [threading.Thread(target=one, args=each) for each in folders.items()]
    for each in threads:
        each.start()
    for each in threads:
        each.join(60)
    (won,) = (said.removeprefix("won ") for said in results if said.startswith("won"))
    assert len(results) == 2
    assert current(moto_url, servers.KEYS, place) == won


def test_a_publisher_that_slept_through_a_newer_release_does_not_undo_it(
    proxy: Proxy, moto_url: str, place: str, tmp_path: Path
) -> None:
    publish(packaged(tmp_path / "0"), place)
    asleep, awake = threading.Event(), threading.Event()

    def sleep(_: int, line: str) -> None:
        if line.startswith("PUT") and "latest.json" in line and not asleep.is_set():
            asleep.set()
            awake.wait(60)

    proxy.before = sleep
    late = command("publish", packaged(tmp_path / "1", NEW, release="1.1.0"), "--to", place, environ={})
    assert asleep.wait(60)
    publish(packaged(tmp_path / "2", release="1.2.0"), place)
    awake.set()
    _, refusal = late.communicate(timeout=60)
    assert (late.returncode, current(moto_url, servers.KEYS, place)) == (20, "1.2.0"), refusal


def test_a_lost_reply_is_no_failure(proxy: Proxy, moto_url: str, place: str, tmp_path: Path) -> None:
    """The pointer was moved and the answer never came: asked again, the server says that the condition fails."""
    lost = set[str]()

    def once(line: str) -> bool:
        is_new = line.startswith(("PUT", "POST")) and line not in lost
        lost.add(line)
        return is_new

    proxy.loses = once
    done = publish(packaged(tmp_path, NEW), place)
    assert (done.sequence, done.uploaded) == (1, 6)
    assert sum("latest.json" in line for line in proxy.writes) == 2
    assert current(moto_url, servers.KEYS, place) == "1.0.0"


@swifts.needs_swift
@pytest.mark.parametrize("what", ["partNumber=2", "blobs/blake3/", "latest.json"])
def test_bytes_that_change_on_their_way_are_refused_by_the_server(
    what: str, swift_proxy: Proxy, swift_url: str, place: str, tmp_path: Path
) -> None:
    publish(packaged(tmp_path / "0"), place, guarded=False)

    def flip(line: str, body: bytes) -> bytes:
        return bytes([body[0] ^ 1]) + body[1:] if line.startswith("PUT") and what in line and body else body

    swift_proxy.damage = flip
    with pytest.raises(PublishError, match=r"SHA256|Digest|400"):
        publish(packaged(tmp_path / "1", NEW, release="1.1.0"), place, guarded=False)
    assert current(swift_url, swifts.KEYS, place) == "1.0.0"


@pytest.mark.parametrize("large", [False, True])
def test_a_damaged_file_of_the_package_is_named_and_nothing_is_published(
    large: bool, proxy: Proxy, moto_url: str, place: str, tmp_path: Path
) -> None:
    publish(packaged(tmp_path / "0"), place)
    folder = packaged(tmp_path / "1", NEW, release="1.1.0")
    row = "tiny__l40s__fp8__tp1" if large else "tiny__l40s__fp16__tp1"
    listed = manifest.read(folder / "model_manifest.yaml").profiles
    wanted = next(profile for profile in listed if profile.name == row).file("engine.plan")
    path = folder / PACKAGED / wanted.uri
    path.write_bytes(b"X" + path.read_bytes()[1:])
    with pytest.raises(PublishError, match=f"{path.name} hashes to blake3:.*run the build again"):
        publish(folder, place)
    assert current(moto_url, servers.KEYS, place) == "1.0.0"
    prefix = place.removeprefix("s3://mirror/")
    s3 = client(moto_url, servers.KEYS)
    assert not s3.list_multipart_uploads(Bucket="mirror", Prefix=prefix).get("Uploads")
    stored = {one["Key"] for one in s3.list_objects_v2(Bucket="mirror", Prefix=prefix)["Contents"]}
    assert f"{prefix}/{wanted.uri}" not in stored


@swifts.needs_swift
def test_a_server_without_conditional_writes_is_refused_unless_it_is_said(
    swift_proxy: Proxy, swift_url: str, place: str, tmp_path: Path
) -> None:
    folder = packaged(tmp_path)
    with pytest.raises(PublishError, match=r"no conditional writes.*--unguarded"):
        publish(folder, place)
    assert not any("/blobs/" in line for line in swift_proxy.writes)  # it is said before anything is sent
    publish(folder, place, guarded=False)
    assert current(swift_url, swifts.KEYS, place) == "1.0.0"


def test_a_server_that_looks_at_no_condition_is_found_out(proxy: Proxy, place: str, tmp_path: Path) -> None:
    proxy.drops = frozenset({"if-match", "if-none-match"})
    with pytest.raises(PublishError, match=r"no conditional writes.*--unguarded"):
        publish(packaged(tmp_path), place)
    assert not any("/blobs/" in line for line in proxy.writes)
    assert not list(Bucket(place).objects(""))  # nothing of the attempt stays


@pytest.mark.parametrize(
    ("changed", "to", "words"),
    [
        ({}, "s3://nowhere/x", "make the bucket first"),
        ({"AWS_ENDPOINT_URL": "http://127.0.0.1:1"}, "s3://mirror/x", "look at AWS_ENDPOINT_URL"),
        ({"AWS_ACCESS_KEY_ID": "", "AWS_SECRET_ACCESS_KEY": ""}, "s3://mirror/x", "no AWS credentials are known"),
        ({}, "s3:///x", "is not s3://BUCKET"),
        ({}, "ftp://mirror/x", "is neither s3://BUCKET/PREFIX nor oci://"),
    ],
)
def test_a_place_that_cannot_be_published_to_is_a_reason_with_its_remedy(
    changed: Mapping[str, str], to: str, words: str, proxy: Proxy, tmp_path: Path
) -> None:
    environ = {"AWS_EC2_METADATA_DISABLED": "true", "AWS_MAX_ATTEMPTS": "1", "HOME": str(tmp_path), **changed}
    done = run("publish", packaged(tmp_path), "--to", to, environ=environ)
    assert done.returncode == 19
    assert words in done.stderr
    assert "Traceback" not in done.stderr


@swifts.needs_swift
@pytest.mark.slow
@pytest.mark.timeout(600)
def test_readers_see_a_whole_release_wherever_the_publisher_is_killed(
    swift_proxy: Proxy, swift_url: str, place: str, tmp_path: Path
) -> None:
    """SIGKILL around each request that a real server gets; then it is run again, to the end."""
    old, new = packaged(tmp_path / "old"), packaged(tmp_path / "new", NEW, release="2.0.0")
    seen = dict[tuple[str, int], str]()
    number, last = 0, 99
    while number < last:
        number += 1
        for moment in ("after", "before")[: 1 + (number % 4 == 1)]:  # before one is after the one before it, or nearly
            here = f"{place}/{moment}-{number}"
            swift_proxy.before = swift_proxy.after = lambda *_: None
            publish(old, here, guarded=False)
            swift_proxy.seen.clear()
            publisher = command("publish", new, "--to", here, "--unguarded", environ={})

            def kill(count: int, _: str, publisher: Any = publisher, number: int = number) -> None:
                if count == number:
                    publisher.kill()
                    publisher.wait(30)

            setattr(swift_proxy, moment, kill)
            publisher.communicate(timeout=60)
            if publisher.returncode == 0:  # it was done before it could be killed: all points have been
                last = number
            seen[moment, number] = current(swift_url, swifts.KEYS, here)
            if number % 6 == 0:
                swift_proxy.before = swift_proxy.after = lambda *_: None
                publish(new, here, guarded=False)
                assert current(swift_url, swifts.KEYS, here) == "2.0.0"
    killed = {point: release for point, release in seen.items() if point[1] < last}
    assert len(killed) >= 20
    assert set(killed.values()) == {"1.0.0", "2.0.0"}
    # Once new, never old again at a later point.
    assert [seen["after", n] for n in range(1, last)] == sorted(seen["after", n] for n in range(1, last))
