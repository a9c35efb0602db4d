"""Downloads into a cache: killed, cut off, lied to, raced; what is there in the end is whole, or nothing is."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path

import pytest
from blake3 import blake3

from serving.cache import local
from serving.cache.download import Patience
from serving.cache.fetch import ensure, fetch
from serving.cache.places import Places
from serving.contract import manifest
from serving.contract.profile import Profile, ProfileFile
from serving.errors import CacheError
from serving.start import cli
from tests.support.servers import Web, serve

ROOT = Path(__file__).parents[3]
DATA = random.Random(0).randbytes(3_000_000)
OTHER = b"a tokenizer"
HASTY = Patience(attempts=3, first_delay_s=0.0)


def entry(path: str, data: bytes, size: int | None = None) -> ProfileFile:
    digest = blake3(data).hexdigest()
    return ProfileFile(
        path=path,
        uri=f"blobs/blake3/{digest}",
        checksum=f"blake3:{digest}",
        size_bytes=len(data) if size is None else size,
    )


ENGINE, TOKENIZER = entry("engine.onnx", DATA), entry("tokenizer.json", OTHER)
PATH = f"/{ENGINE.uri}"
PROFILE = Profile(id="a" * 64, name="mini", tags={}, files=(ENGINE, TOKENIZER), proof_min_cosine=0.98)
WHOLE: Mapping[str, bytes] = {"engine.onnx": DATA, "tokenizer.json": OTHER}


def one(file: ProfileFile = ENGINE) -> Profile:
    return Profile(id="b" * 64, name="one", tags={}, files=(file,), proof_min_cosine=0.98)


@pytest.fixture
def web() -> Iterator[Web]:
    with serve({PATH: DATA, f"/{TOKENIZER.uri}": OTHER}) as found:
        yield found


@pytest.fixture
def places(web: Web, tmp_path: Path) -> Places:
    return Places(root=tmp_path / "root", cache_path=tmp_path / "cache", repository=web.url, patience=HASTY)


def target(places: Places) -> Path:
    assert places.cache_path is not None
    return local.blob(places.cache_path, ENGINE)


def part(places: Places) -> Path:
    return target(places).with_name(f".{target(places).name}.part")


def files_of(places: Places) -> set[str]:
    return {path.name for path in target(places).parent.iterdir()}


def refused(places: Places, profile: Profile | None = None) -> str:
    with pytest.raises(CacheError) as caught:
        fetch(profile or one(), places)
    return str(caught.value)


def test_a_download_fills_the_cache_and_the_next_start_asks_nobody(web: Web, places: Places) -> None:
    assert fetch(PROFILE, places) == WHOLE
    asked = len(web.asked)
    assert asked == 2
    assert fetch(PROFILE, places) == WHOLE
    assert len(web.asked) == asked
    assert files_of(places) == {blake3(data).hexdigest() for data in WHOLE.values()}


def test_ensuring_says_where_each_file_was_found(places: Places) -> None:
    said: list[str] = []
    assert set(ensure([PROFILE], places, said.append).values()) == {f"downloaded from {places.repository}"}
    assert any("Downloading engine.onnx (3.0 MB)" in line for line in said)
    assert set(ensure([PROFILE], places, said.append).values()) == {"in the cache"}


def test_a_file_that_two_profiles_share_is_downloaded_once(web: Web, places: Places) -> None:
    ensure([PROFILE, one()], places, lambda message: None)
    assert len([path for path, _ in web.asked if path == PATH]) == 1


def test_lines_that_break_are_taken_up_where_they_broke(web: Web, places: Places) -> None:
    web.break_after = [1_000_000, 500_000, 1]
    assert fetch(one(), places) == {"engine.onnx": DATA}
    assert [wanted for _, wanted in web.asked][:2] == [None, "bytes=1000000-"]
    assert len(web.asked) == 4


def test_a_source_without_ranges_is_read_again_from_its_start(web: Web, places: Places) -> None:
    web.ranges, web.break_after = False, [2_000_000]
    assert fetch(one(), places) == {"engine.onnx": DATA}


def test_a_busy_server_is_asked_again_and_one_that_stays_busy_is_given_up(web: Web, places: Places) -> None:
    web.answers = [503, 429]
    assert fetch(one(), places) == {"engine.onnx": DATA}
    target(places).unlink()
    web.answers = [502] * 10
    message = refused(places)
    assert "502" in message
    assert "given up after 3 attempts" in message


def test_an_answer_that_will_not_change_is_not_asked_for_twice(web: Web, places: Places) -> None:
    for status, words in ((403, "may not read it"), (404, "look at NIM_REPOSITORY_OVERRIDE"), (401, "wants a login")):
        before = len(web.asked)
        web.answers = [status]
        assert words in refused(places)
        assert len(web.asked) == before + 1


def test_what_an_interrupted_download_left_is_continued(web: Web, places: Places) -> None:
    part(places).parent.mkdir(parents=True)
    part(places).write_bytes(DATA[:2_500_000])
    assert fetch(one(), places) == {"engine.onnx": DATA}
    assert web.asked == [(PATH, "bytes=2500000-")]


@pytest.mark.parametrize("left", [b"?" * 1000, DATA[:-1] + b"?", DATA + b"?", b"?" * 4_000_000])
def test_wrong_bytes_that_an_earlier_process_left_cost_one_more_download_and_no_more(
    web: Web, places: Places, left: bytes
) -> None:
    part(places).parent.mkdir(parents=True)
    part(places).write_bytes(left)
    assert fetch(one(), places) == {"engine.onnx": DATA}
    assert web.asked[-1] == (PATH, None)
    assert len(web.asked) <= 2


def test_a_whole_part_is_placed_without_asking(web: Web, places: Places) -> None:
    part(places).parent.mkdir(parents=True)
    part(places).write_bytes(DATA)
    assert fetch(one(), places) == {"engine.onnx": DATA}
    assert web.asked == []


def test_corrupted_bytes_with_status_200_are_refused_and_nothing_stays(web: Web, places: Places) -> None:
    web.files[PATH] = DATA[:1_500_000] + b"?" + DATA[1_500_001:]
    message = refused(places)
    assert "hashes to blake3:" in message
    assert ENGINE.checksum in message
    assert files_of(places) == set()
    assert len(web.asked) == 1


@pytest.mark.parametrize("content", [DATA[:-1], DATA + b"?", b"", b"<html>Log in</html>"])
def test_a_file_of_another_length_is_refused_by_its_length(web: Web, places: Places, content: bytes) -> None:
    web.files[PATH] = content
    assert f"has {len(content)} bytes there where the manifest says {len(DATA)}" in refused(places)
    assert files_of(places) == set()


def test_a_file_whose_size_nobody_said_is_still_checked_by_its_digest(web: Web, places: Places) -> None:
    unsized = entry("engine.onnx", DATA, size=-1)
    assert fetch(one(unsized), places) == {"engine.onnx": DATA}
    target(places).unlink()
    web.files[PATH] = DATA[:-1]
    assert "hashes to" in refused(places, one(unsized))


def test_a_file_that_changes_at_its_source_during_the_download_is_noticed(web: Web, places: Places) -> None:
    """The first half is of another file: If-Range makes the server start anew."""
    web.files[PATH], web.break_after = bytes(len(DATA)), [1_000_000]

    class Changing(list[tuple[str, str | None]]):
        def append(self, item: tuple[str, str | None]) -> None:
            super().append(item)
            if len(self) == 2:
                web.files[PATH] = DATA

    web.asked = Changing()
    assert fetch(one(), places) == {"engine.onnx": DATA}
    assert len(web.asked) == 2


def test_a_damaged_file_of_the_cache_is_replaced_from_the_source(places: Places) -> None:
    fetch(one(), places)
    target(places).write_bytes(b"?" + DATA[1:])
    assert fetch(one(), places) == {"engine.onnx": DATA}
    assert target(places).read_bytes() == DATA


def test_every_bad_file_is_listed_after_the_good_ones_are_cached(web: Web, places: Places) -> None:
    del web.files[f"/{TOKENIZER.uri}"]
    missing = entry("proof.json", b"proof")
    with pytest.raises(CacheError) as caught:
        ensure([PROFILE, one(missing)], places, lambda message: None)
    assert "tokenizer.json" in str(caught.value)
    assert "proof.json" in str(caught.value)
    assert target(places).read_bytes() == DATA


def test_a_file_repository_is_read_in_place_and_copied_on_demand(tmp_path: Path) -> None:
    mirror = tmp_path / "mirror"
    for data in WHOLE.values():
        path = mirror / "blobs/blake3" / blake3(data).hexdigest()
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    places = Places(root=tmp_path / "root", cache_path=tmp_path / "cache", repository=mirror.as_uri(), patience=HASTY)
    assert fetch(PROFILE, places) == WHOLE
    assert not (tmp_path / "cache").exists()
    ensure([PROFILE], places, lambda message: None)
    assert target(places).read_bytes() == DATA
    assert fetch(PROFILE, Places(root=tmp_path / "root", cache_path=tmp_path / "cache")) == WHOLE


def test_a_disk_that_is_too_small_is_said_before_the_first_byte(web: Web, places: Places) -> None:
    vast = entry("engine.onnx", DATA, size=1 << 60)
    with pytest.raises(CacheError, match="MB are to be downloaded; free some space"):
        ensure([one(vast)], places, lambda message: None)
    assert web.asked == []


def script(places: Places) -> list[str]:
    """Download the engine in a process of its own."""
    code = (
        "import sys; from pathlib import Path; from serving.cache.fetch import ensure\n"
        "from serving.cache.places import Places\n"
        "from serving.contract.profile import Profile, ProfileFile\n"
        "root, cache, url = sys.argv[1:]\n"
        "places = Places(root=Path(root), cache_path=Path(cache), repository=url)\n"
        f"print(*ensure([{one()!r}], places, lambda m: print(m, flush=True)).values())\n"
    )
    return [sys.executable, "-c", code, str(places.root), str(places.cache_path), str(places.repository)]


@pytest.mark.slow
def test_a_download_killed_at_random_moments_is_finished_by_the_next(web: Web, places: Places) -> None:
    """Ten kills at random places of the file: none leaves a file that is not whole under its name."""
    web.slow_s = 0.1  # 3 MB in about five seconds
    moments = random.Random(1)
    for _ in range(10):
        running = subprocess.Popen(script(places), cwd=ROOT, stdout=subprocess.PIPE, text=True)
        assert running.stdout is not None
        assert "Downloading" in running.stdout.readline()
        time.sleep(moments.uniform(0.0, 0.6))
        running.send_signal(signal.SIGKILL)
        running.wait(30)
        running.stdout.close()
        if target(places).exists():
            assert target(places).read_bytes() == DATA
        else:
            assert DATA.startswith(part(places).read_bytes() if part(places).exists() else b"")
    web.slow_s = 0.0
    done = subprocess.run(script(places), cwd=ROOT, capture_output=True, text=True, check=True, timeout=60)
    assert "in the cache" in done.stdout or "downloaded from" in done.stdout
    assert target(places).read_bytes() == DATA
    starts = [int(wanted[6:-1]) if wanted else 0 for _, wanted in web.asked]
    assert starts == sorted(starts)
    assert starts[-1] > 0


@pytest.mark.slow
def test_processes_that_want_one_file_download_it_once(web: Web, places: Places) -> None:
    web.slow_s = 0.01
    running = [subprocess.Popen(script(places), cwd=ROOT, stdout=subprocess.PIPE, text=True) for _ in range(3)]
    for each in running:
        assert each.communicate(timeout=60)[0]
        assert each.returncode == 0
    assert target(places).read_bytes() == DATA
    assert files_of(places) == {target(places).name}
    assert len(web.asked) == 1


def test_threads_that_want_one_file_download_it_once(web: Web, places: Places) -> None:
    web.slow_s = 0.002
    found: list[Mapping[str, bytes]] = []
    threads = [threading.Thread(target=lambda: found.append(fetch(one(), places))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert found == [{"engine.onnx": DATA}] * 4
    assert len(web.asked) == 1


@pytest.fixture
def closed_cache() -> Iterator[Path]:
    """A filled cache that this user may read and not write. Root may write everywhere, so become nobody."""
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)
        for data in WHOLE.values():
            path = Path(folder, "blobs/blake3", blake3(data).hexdigest())
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)
        before = os.geteuid()
        if before == 0:
            os.seteuid(65534)
        else:
            for path in (Path(folder, "blobs/blake3"), Path(folder, "blobs"), Path(folder)):
                path.chmod(0o555)
        yield Path(folder)
        os.seteuid(before)
        for path in (Path(folder), Path(folder, "blobs"), Path(folder, "blobs/blake3")):
            path.chmod(0o755)


def test_a_complete_cache_that_may_not_be_written_is_all_it_takes(closed_cache: Path) -> None:
    places = Places(root=Path("/nonexistent"), cache_path=closed_cache, repository="https://nobody.invalid/x")
    before = sorted(closed_cache.rglob("*"))
    assert fetch(PROFILE, places) == WHOLE
    assert set(ensure([PROFILE], places, lambda message: None).values()) == {"in the cache"}
    assert sorted(closed_cache.rglob("*")) == before


def test_a_download_into_a_closed_cache_says_who_may_write_it(web: Web, closed_cache: Path) -> None:
    places = Places(root=Path("/nonexistent"), cache_path=closed_cache, repository=web.url, patience=HASTY)
    message = refused(places, one(entry("proof.json", b"proof")))
    assert f"uid={os.geteuid()}" in message
    assert "cannot be written: Permission denied" in message
    assert "drwxr-xr-x owner" in message or "dr-xr-xr-x owner" in message
    assert "mount it writable for this user" in message
    assert web.asked == []


def test_a_link_in_the_place_of_a_part_is_not_followed(places: Places, tmp_path: Path) -> None:
    part(places).parent.mkdir(parents=True)
    (tmp_path / "precious").write_text("precious")
    part(places).symlink_to(tmp_path / "precious")
    assert "cannot be written" in refused(places)
    assert (tmp_path / "precious").read_text() == "precious"


# By the commands


@pytest.fixture
def slim(web: Web, tmp_path: Path) -> dict[str, str]:
    """The environment of a slim image: a manifest, no files, and a repository of the image's own."""
    root = tmp_path / "root"
    tags = {"backend": "onnxruntime", "precision": "fp32", "tp": "1"}
    other = entry("engine.onnx", b"another engine")
    profiles = []
    for name, files in (("mini__cpu__fp32__tp1", PROFILE.files), ("mini__x__fp32__tp1", (other,))):
        given = {**tags, **({"gpu": "x"} if "x" in name else {})}
        made = Profile(id=manifest.profile_id(given), name=name, tags=given, files=files, proof_min_cosine=0.98)
        profiles.append(replace(made, digest=manifest.content_digest(made)))
    path = root / "etc/default/model_manifest.yaml"
    path.parent.mkdir(parents=True)
    path.write_bytes(manifest.dump(manifest.Manifest(model="mini", release="1.0.0", profiles=tuple(profiles))))
    web.files[f"/{other.uri}"] = b"another engine"
    return {
        "ENGINERY_ROOT": str(root),
        "ENGINERY_REPOSITORY": web.url,
        "NIM_CACHE_PATH": str(tmp_path / "cache"),
        "NIM_CPU_ONLY": "1",
    }


def test_the_command_downloads_the_selected_profile_and_says_so(
    slim: dict[str, str], web: Web, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["download-to-cache"], slim) == 0
    said = capsys.readouterr()
    assert f"(mini__cpu__fp32__tp1): 2 files, 3.0 MB verified, downloaded from {web.url}\n" in said.out
    assert "Downloading engine.onnx (3.0 MB)" in said.err
    assert cli.main(["nim_download_to_cache"], slim) == 0
    assert "verified, in the cache; nothing to download" in capsys.readouterr().out
    assert len(web.asked) == 2


def test_the_command_downloads_what_is_named_or_all_also_for_other_machines(
    slim: dict[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["download-to-cache", "--profile", "mini__x__fp32__tp1"], slim) == 0
    assert len(list(Path(slim["NIM_CACHE_PATH"], "blobs/blake3").iterdir())) == 1
    assert cli.main(["download-to-cache", "--all"], slim) == 0
    assert len(list(Path(slim["NIM_CACHE_PATH"], "blobs/blake3").iterdir())) == 3
    assert capsys.readouterr().out.count("verified") == 3


def test_the_override_goes_before_the_images_own_repository(slim: dict[str, str], web: Web) -> None:
    elsewhere = {**slim, "NIM_REPOSITORY_OVERRIDE": "ngc://org/team"}
    assert cli.main(["download-to-cache"], elsewhere) == 23
    assert web.asked == []


def test_unknown_profiles_are_told_in_nims_words(slim: dict[str, str], capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["download-to-cache", "-p", "nonsense", "mini__cpu__fp16__tp1"], slim) == 22
    lines = capsys.readouterr().err.splitlines()
    ids = [p.id for p in manifest.read(Path(slim["ENGINERY_ROOT"], "etc/default/model_manifest.yaml")).profiles]
    assert lines[0] == "Error: Not all of the provided profiles are supported."
    assert lines[1] == "Unknown profiles provided: {'nonsense', 'mini__cpu__fp16__tp1'}"
    assert lines[2] == f"All valid profiles: {{'{ids[0]}', '{ids[1]}'}}"
    assert any("mini__cpu__fp32__tp1)  <- did you mean this?" in line for line in lines)


def test_a_model_store_is_filled_through_the_cache(slim: dict[str, str], tmp_path: Path) -> None:
    assert cli.main(["create-model-store", "-p", "mini__cpu__fp32__tp1", "-m", str(tmp_path / "store")], slim) == 0
    assert {path.name: path.read_bytes() for path in (tmp_path / "store").iterdir()} == WHOLE


def test_a_download_that_is_forbidden_says_what_forbids_it(
    slim: dict[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["download-to-cache"], {**slim, "NIM_DISABLE_MODEL_DOWNLOAD": "1"}) == 23
    assert "NIM_DISABLE_MODEL_DOWNLOAD is set: unset it, or mount a filled cache" in capsys.readouterr().err
