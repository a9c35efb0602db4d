"""The store: blobs by digest, records by key, nothing half written."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from pipelines.errors import StoreError
from pipelines.store.files import key_of, write_atomically
from pipelines.store.store import Blob, Record, Store


def record(key: str, outputs: dict[str, Blob]) -> Record:
    return Record(
        key=key,
        stage="export",
        subject="m",
        key_inputs={"version": 1},
        outputs=outputs,
        facts={},
        duration_s=0.1,
        peak_rss_bytes=1,
    )


def test_the_same_bytes_are_kept_once(tmp_path: Path) -> None:
    store = Store(tmp_path / "store")
    first, second = store.put_bytes(b"engine"), store.put_bytes(b"engine")
    assert first == second
    assert [p for p in (tmp_path / "store" / "blobs").rglob("*") if p.is_file()] == [store.path(first.digest)]


def test_a_record_counts_only_while_all_its_blobs_are_there(tmp_path: Path) -> None:
    store = Store(tmp_path)
    blob = store.put_bytes(b"engine")
    store.write_record(record("ab", {"engine": blob}))
    assert store.record("ab") == record("ab", {"engine": blob})
    store.path(blob.digest).unlink()
    assert store.record("ab") is None


def test_a_truncated_blob_counts_as_missing(tmp_path: Path) -> None:
    store = Store(tmp_path)
    blob = store.put_bytes(b"engine")
    store.path(blob.digest).chmod(0o644)
    store.path(blob.digest).write_bytes(b"eng")
    assert not store.has(blob)


def test_a_flipped_byte_is_found_before_use_and_the_blob_is_set_aside(tmp_path: Path) -> None:
    store = Store(tmp_path)
    blob = store.put_bytes(b"engine")
    path = store.path(blob.digest)
    path.chmod(0o644)
    path.write_bytes(b"enginE")
    with pytest.raises(StoreError, match="run the build again"):
        store.verified(blob)
    assert not store.has(blob)


def test_the_latest_record_of_a_subject_is_the_one_last_used(tmp_path: Path) -> None:
    store = Store(tmp_path)
    store.write_record(record("aa", {}))
    store.write_record(record("bb", {}))
    latest = store.latest("export", "m")
    assert latest is not None
    assert latest.key == "bb"


def test_a_second_builder_is_turned_away_with_the_remedy(tmp_path: Path) -> None:
    with Store(tmp_path).locked(), pytest.raises(StoreError, match="--store"), Store(tmp_path).locked():
        pass


def test_a_failed_write_leaves_the_old_bytes_and_no_litter(tmp_path: Path) -> None:
    target = tmp_path / "pointer"
    write_atomically(target, b"old")
    with pytest.raises(TypeError):
        write_atomically(target, "not bytes")  # type: ignore[arg-type]
    assert target.read_bytes() == b"old"
    assert [p.name for p in tmp_path.iterdir()] == ["pointer"]


def test_a_damaged_record_names_the_file_to_remove(tmp_path: Path) -> None:
    store = Store(tmp_path)
    store.write_record(record("aa", {}))
    (tmp_path / "steps" / "aa.json").write_text("{")
    with pytest.raises(StoreError, match="remove it"):
        store.record("aa")


def test_a_key_depends_on_values_not_on_their_order() -> None:
    assert key_of({"a": 1, "b": {"c": 2, "d": 3}}) == key_of(json.loads('{"b": {"d": 3, "c": 2}, "a": 1}'))
    assert key_of({"a": 1}) != key_of({"a": 2})
