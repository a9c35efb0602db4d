"""The boot: the best profile serves, and what fails gives way to the next with its reason."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from serving import backends
from serving.batching.lanes import Timing
from serving.contract.profile import Precision
from serving.errors import BackendError, CacheError, NoProfile, ProofFailed, ServingError
from serving.start import boot
from serving.tasks.base import ONLY
from serving.watch.metrics import Metrics
from tests.support.boots import MACHINE, blob, profile, settings, start
from tests.support.profiles import FIRST, GENERIC, OPENVINO, SECOND, Tiny, add_profile, write_manifest


def test_the_best_profile_serves_and_its_choice_is_told_in_nims_words(
    root: Path, tiny: Tiny, caplog: pytest.LogCaptureFixture
) -> None:
    phases: list[str] = []
    metrics = Metrics()
    with caplog.at_level(logging.INFO):
        service = boot.start(settings(root), metrics, phases.append, MACHINE)
    assert service.profile.name == FIRST
    assert service.names == ("tiny",)
    for words in ("Detected 2 compatible profile(s).", f"Selected profile: {service.profile.id} ({FIRST})"):
        assert words in caplog.text
    assert "Profile metadata: backend: openvino" in caplog.text
    names = ("manifest", "hardware", "fetch", "load", "layout", "prove", "warm-up")
    assert phases == [f"loading: {name}" for name in names]
    text = metrics.text().decode()
    assert f'row="{FIRST}"' in text
    assert 'load_phase_seconds{phase="prove"}' in text

    async def embed() -> object:
        items = await service.encoders.run(lambda encoder: encoder.encode(tiny.golden.texts[:3]))
        return await service.lanes[ONLY].submit(items, Timing())

    assert np.allclose(asyncio.run(embed()), tiny.golden.vectors[:3], atol=1e-5)  # type: ignore[arg-type]


def flip_a_byte(root: Path, other: Tiny) -> None:
    path = blob(root, FIRST, "engine.blob")
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def drop_a_file(root: Path, other: Tiny) -> None:
    blob(root, FIRST, "engine.blob").unlink()


def swap_engines(root: Path, other: Tiny) -> None:
    """Another model's engine, correctly listed and hashed: only the proof can see it."""
    files = {
        file.path: (root / file.uri).read_bytes() for file in profile(root, FIRST).files if file.path != "engine.blob"
    }
    swapped = add_profile(root, FIRST, OPENVINO, files | {"engine.blob": other.blob})
    write_manifest(root, [swapped, profile(root, SECOND)])


def spoil_the_task_file(root: Path, other: Tiny) -> None:
    files = {file.path: (root / file.uri).read_bytes() for file in profile(root, FIRST).files}
    spoiled = add_profile(root, FIRST, OPENVINO, files | {"task.json": b'{"task": "rerank"}'})
    write_manifest(root, [spoiled, profile(root, SECOND)])


def truncate_the_engine(root: Path, other: Tiny) -> None:
    """Shorter, but listed so: the digest cannot see it, the backend must."""
    files = {file.path: (root / file.uri).read_bytes() for file in profile(root, FIRST).files}
    cut = add_profile(root, FIRST, OPENVINO, files | {"engine.blob": files["engine.blob"][:200]})
    write_manifest(root, [cut, profile(root, SECOND)])


def list_no_tokenizer(root: Path, other: Tiny) -> None:
    files = {file.path: (root / file.uri).read_bytes() for file in profile(root, FIRST).files}
    del files["tokenizer.json"]
    write_manifest(root, [add_profile(root, FIRST, OPENVINO, files), profile(root, SECOND)])


DAMAGE: list[tuple[Callable[[Path, Tiny], None], type[ServingError], str]] = [
    (flip_a_byte, CacheError, "hashes to blake3:"),
    (drop_a_file, CacheError, "is missing"),
    (swap_engines, ProofFailed, "lowest cosine"),
    (spoil_the_task_file, BackendError, "ValidationError"),
    (truncate_the_engine, BackendError, "cannot load the engine"),
    (list_no_tokenizer, BackendError, "it lacks tokenizer.json"),
]


@pytest.mark.parametrize(("damage", "error", "words"), DAMAGE)
def test_a_damaged_profile_is_refused_with_its_reason_and_the_next_serves(
    root: Path,
    other: Tiny,
    caplog: pytest.LogCaptureFixture,
    damage: Callable[[Path, Tiny], None],
    error: type[ServingError],
    words: str,
) -> None:
    damage(root, other)
    with caplog.at_level(logging.INFO):
        service = start(root)
    assert service.profile.name == SECOND
    assert f"({FIRST}) failed, trying the next" in caplog.text
    assert words in caplog.text
    assert caplog.text.count("Selected profile:") == 2


@pytest.mark.parametrize(("damage", "error", "words"), DAMAGE)
def test_a_profile_that_was_named_has_no_fallback(
    root: Path, other: Tiny, damage: Callable[[Path, Tiny], None], error: type[ServingError], words: str
) -> None:
    damage(root, other)
    with pytest.raises(error, match=words):
        start(root, wanted=FIRST)


def test_bytes_that_do_not_hash_right_never_reach_a_backend(
    root: Path, other: Tiny, monkeypatch: pytest.MonkeyPatch
) -> None:
    flip_a_byte(root, other)
    seen: list[str] = []
    real = backends.load
    monkeypatch.setattr(backends, "load", lambda name, *rest: seen.append(name) or real(name, *rest))
    start(root)
    assert set(seen) == {"onnxruntime"}


def test_when_every_profile_fails_each_reason_is_listed(root: Path, other: Tiny) -> None:
    flip_a_byte(root, other)
    blob(root, SECOND, "engine.onnx").unlink()
    with pytest.raises(NoProfile) as caught:
        start(root)
    assert len(caught.value.problems) == 2
    assert "hashes to" in str(caught.value)
    assert "is missing" in str(caught.value)


def test_the_same_engine_under_another_skus_name_is_not_tried_twice(
    root: Path, tiny: Tiny, other: Tiny, caplog: pytest.LogCaptureFixture
) -> None:
    damaged = other.files("engine.onnx", tiny.onnx)  # the proof of another model: loads, and fails its proof
    rows = {row: {**GENERIC, "sku": row} for row in ("tiny__a__fp32__tp1", "tiny__b__fp32__tp1")}
    write_manifest(root, [add_profile(root, row, tags, damaged) for row, tags in rows.items()])
    with pytest.raises(NoProfile, match="it is the engine of tiny__a__fp32__tp1, which failed"):
        start(root)
    assert sum("failed, trying the next" in message for message in caplog.messages) == 1


def test_profiles_of_the_wanted_precision_are_tried_first(root: Path, caplog: pytest.LogCaptureFixture) -> None:
    files = {file.path: (root / file.uri).read_bytes() for file in profile(root, SECOND).files}
    halved = add_profile(root, "tiny__cpu__fp16__tp1", {**GENERIC, "precision": "fp16"}, files)
    write_manifest(root, [profile(root, FIRST), profile(root, SECOND), halved])

    def chosen(precision: Precision | None) -> str:
        found = boot.start(replace(settings(root), precision=precision), Metrics(), lambda message: None, MACHINE)
        return found.profile.name

    assert chosen(None) == FIRST
    assert chosen(Precision.FP16) == "tiny__cpu__fp16__tp1"
    assert "NIM_PRECISION" not in caplog.text
    assert chosen(Precision.FP8) == FIRST
    assert "No profile that can run here is fp8; the choice is made without NIM_PRECISION" in caplog.text
