"""Several builders on one store: one builds, the others wait; who is taken for lost cannot overwrite what stands."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from msgspec import structs

from pipelines.store import claims
from pipelines.store.claims import claimed, held
from pipelines.store.store import Record, Store
from tests.support.services import ROOT, until

# A builder: claims, says so, builds something of its own, records it, and says what stands.
BUILDER = """
import sys, time
from pathlib import Path
from pipelines.store import claims
from pipelines.store.store import Record, Store
claims.LIFE_S, claims.LOST_AFTER_S = 0.1, 1.0
store, name = Store(Path(sys.argv[1])), sys.argv[2]
with store.locked(wait=True, shared=True), claims.claimed(store.root / "claims" / "k"):
    print("building", flush=True)
    if store.record("k" * 64) is None:
        time.sleep(float(sys.argv[3]))
        blob = store.put_bytes(f"made by {name}".encode())
        store.write_record(Record(key="k" * 64, stage="compile", subject="s", key_inputs={}, outputs={"engine": blob},
                                  facts={}, duration_s=0, peak_rss_bytes=0))
print(store.path(store.record("k" * 64).outputs["engine"].digest).read_text(), flush=True)
"""


def builder(store: Path, name: str, seconds: float) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", BUILDER, str(store), name, str(seconds)],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )


def begun(process: subprocess.Popen[str]) -> None:
    assert process.stdout is not None
    assert process.stdout.readline() == "building\n"


def test_the_second_builder_waits_and_takes_what_the_first_made(tmp_path: Path) -> None:
    first = builder(tmp_path, "first", 0.5)
    begun(first)
    second = builder(tmp_path, "second", 0)
    assert first.communicate(timeout=30)[0] == "made by first\n"
    assert second.communicate(timeout=30)[0] == "building\nmade by first\n"


def test_a_killed_builders_claim_is_free_at_once(tmp_path: Path) -> None:
    first = builder(tmp_path, "first", 600)
    begun(first)
    first.kill()
    first.communicate(timeout=10)
    assert not held(tmp_path / "claims" / "k")
    assert builder(tmp_path, "second", 0).communicate(timeout=30)[0] == "building\nmade by second\n"


def test_a_late_writer_gets_what_was_made_in_its_place(tmp_path: Path) -> None:
    suspended = builder(tmp_path, "suspended", 0.5)
    begun(suspended)
    suspended.send_signal(signal.SIGSTOP)
    other = builder(tmp_path, "other", 0)
    assert other.communicate(timeout=30)[0] == "building\nmade by other\n"  # it waited until nobody showed life
    records = {path.name: path.read_bytes() for path in (tmp_path / "steps").iterdir()}
    suspended.send_signal(signal.SIGCONT)
    assert suspended.communicate(timeout=30)[0] == "made by other\n"
    assert {path.name: path.read_bytes() for path in (tmp_path / "steps").iterdir()} == records


def test_a_builder_that_lives_keeps_its_claim_however_long_it_takes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(claims, "LOST_AFTER_S", 1.0)
    first = builder(tmp_path, "first", 2.5)
    begun(first)
    time.sleep(1.5)
    assert held(tmp_path / "claims" / "k")
    assert first.communicate(timeout=30)[0] == "made by first\n"
    assert not held(tmp_path / "claims" / "k")


def test_a_record_whose_blobs_are_gone_is_replaced(tmp_path: Path) -> None:
    store = Store(tmp_path)
    record = Record(
        key="k" * 64,
        stage="compile",
        subject="s",
        key_inputs={},
        outputs={"engine": store.put_bytes(b"old")},
        facts={},
        duration_s=0,
        peak_rss_bytes=0,
    )
    assert store.write_record(record) == record
    newer = structs.replace(record, outputs={"engine": store.put_bytes(b"new")})
    assert store.write_record(newer) == record
    store.path(record.outputs["engine"].digest).unlink()
    assert store.write_record(newer) == newer
    assert store.record("k" * 64) == newer


def test_builders_that_share_keep_one_out_that_wants_the_store_alone(tmp_path: Path) -> None:
    first = builder(tmp_path, "first", 600)
    begun(first)
    try:
        with pytest.raises(Exception, match="another build holds"), Store(tmp_path).locked():
            pass
    finally:
        first.kill()
        first.communicate(timeout=10)
    with Store(tmp_path).locked():
        assert not (tmp_path / "tmp").exists()


def test_measuring_time_waits_for_those_that_build(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    script = (
        "from pipelines.store.claims import quiet\n"
        "import sys, time\n"
        "with quiet(exclusive=sys.argv[1] == 'alone'):\n"
        "    print('in', time.monotonic(), flush=True); time.sleep(1); print('out', time.monotonic(), flush=True)\n"
    )

    def run(how: str) -> subprocess.Popen[str]:
        environ = {**os.environ, "PYTHONPATH": str(ROOT), "TMPDIR": str(tmp_path)}
        return subprocess.Popen([sys.executable, "-c", script, how], stdout=subprocess.PIPE, text=True, env=environ)

    building = run("shared")
    until("it builds", lambda: any(tmp_path.glob("enginery-*.quiet")), 10)
    assert building.stdout is not None
    building.stdout.readline()
    measuring = run("alone")
    left = float(building.communicate(timeout=20)[0].split()[1])
    entered = float(measuring.communicate(timeout=20)[0].split()[1])
    assert entered >= left


def test_a_claim_that_was_never_made_is_not_held(tmp_path: Path) -> None:
    assert not held(tmp_path / "none")
    with claimed(tmp_path / "mine"):
        assert held(tmp_path / "mine")
