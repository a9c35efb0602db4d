"""The start: the best profile that is whole and proved serves, the others say why not; signals end it cleanly."""

from __future__ import annotations

import asyncio
import json
import logging
import signal
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import httpx
import numpy as np
import pytest
from numpy.typing import NDArray

from serving import backends
from serving.api.state import Service
from serving.backends.base import Inputs
from serving.backends.onnxruntime import OnnxRuntime
from serving.backends.openvino import OpenVino
from serving.batching.lanes import Timing
from serving.choice import hardware
from serving.contract import manifest
from serving.contract.profile import Precision, Profile
from serving.errors import BackendError, CacheError, NoProfile, ProofFailed, ServingError
from serving.settings.settings import Settings
from serving.start import boot
from serving.start.layout import Layout
from serving.tasks.base import ONLY
from serving.watch.metrics import Metrics
from tests.support.profiles import FIRST, GENERIC, OPENVINO, SECOND, Tiny, add_profile, write_manifest
from tests.support.server_process import process, wait_for
from tests.support.tiny_models import Model, picture, reranker, see_and_read

MACHINE = hardware.detect(cpu_only=True)


def settings(root: Path, wanted: str | None = None) -> Settings:
    return Settings(
        root=root,
        manifest_path=root / "etc" / "default" / "model_manifest.yaml",
        cache_path=root / "cache",
        wanted_profile=wanted,
        cpu_only=True,
        num_threads=1,
    )


def start(root: Path, wanted: str | None = None) -> Service:
    return boot.start(settings(root, wanted), Metrics(), lambda message: None, MACHINE)


def profile(root: Path, row: str) -> Profile:
    found = manifest.read(root / "etc" / "default" / "model_manifest.yaml")
    return next(profile for profile in found.profiles if profile.name == row)


def blob(root: Path, row: str, file: str) -> Path:
    return root / profile(root, row).file(file).uri


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


def test_a_layout_that_was_measured_is_not_measured_again(root: Path, tmp_path: Path) -> None:
    phases: list[str] = []
    cached = replace(settings(root), cache_path=tmp_path / "cache", num_threads=2)
    for _ in range(2):
        boot.start(cached, Metrics(), phases.append, MACHINE)
    assert phases.count("loading: load") == 2
    assert phases.count("loading: layout") == 1
    for mode, wanted in ({"performance_mode": "latency"}, 1), ({"num_streams": 2}, 2):
        service = boot.start(replace(cached, **mode), Metrics(), phases.append, MACHINE)  # type: ignore[arg-type]
        assert service.lanes["model"].num_streams == wanted
    assert phases.count("loading: layout") == 1
    for _ in range(2):  # what is best for lone texts is not what is best for many
        boot.start(replace(cached, performance_mode="throughput"), Metrics(), phases.append, MACHINE)
        assert phases.count("loading: layout") == 2


@pytest.mark.parametrize("wrong", [True, False])
def test_an_engine_is_proved_both_with_the_threads_of_a_stream_and_with_those_it_lends(
    root: Path, monkeypatch: pytest.MonkeyPatch, wrong: bool
) -> None:
    chosen, seen = Layout(num_streams=2, num_threads=2, alone_threads=2), []
    monkeypatch.setattr("serving.start.engines.layout.recall", lambda *_: chosen)
    real = OpenVino.infer

    def infer(self: OpenVino, inputs: Inputs, *, alone: bool = False) -> NDArray[np.float32]:
        seen.append(alone)
        output = real(self, inputs, alone=alone)
        return -output if alone is wrong and damaged else output

    monkeypatch.setattr(OpenVino, "infer", infer)
    damaged = False
    service = start(root, FIRST)
    assert set(seen) == {True, False}
    assert service.lanes["model"].num_streams == 2
    damaged = True
    with pytest.raises(ProofFailed):
        start(root, FIRST)


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


def test_texts_longer_than_the_engine_takes_are_refused_at_the_start(root: Path, tiny: Tiny) -> None:
    files = {file.path: (root / file.uri).read_bytes() for file in profile(root, SECOND).files}
    files["task.json"] = files["task.json"].replace(b'"max_tokens":32', b'"max_tokens":64')
    write_manifest(root, [add_profile(root, SECOND, GENERIC, files)])
    with pytest.raises(NoProfile, match="may have 64 tokens, the engine takes 32"):
        start(root)


def test_served_names_come_from_the_settings_when_given(root: Path) -> None:
    named = replace(settings(root), served_model_names=("org/tiny", "tiny"))
    assert boot.start(named, Metrics(), lambda message: None, MACHINE).names == ("org/tiny", "tiny")


def generic_root(folder: Path, model: Model, **without: str) -> Path:
    """A manifest with a model's generic profile alone. without: files that the profile does not list."""
    files = {name: data for name, data in model.files().items() if name not in without.values()}
    write_manifest(folder, [add_profile(folder, SECOND, GENERIC, files)])
    return folder


def test_a_reranker_is_proved_and_scores(tmp_path: Path) -> None:
    model = reranker()
    service = start(generic_root(tmp_path, model))
    assert list(service.lanes) == [ONLY]

    async def score() -> object:
        items = await service.encoders.run(lambda encoder: encoder.encode("w1 w2", ["w3", "w2 w1"]))
        return await service.lanes[ONLY].submit(items, Timing())

    scores = asyncio.run(score())
    assert np.shape(scores) == (2, 1)  # type: ignore[arg-type]
    assert np.isfinite(scores).all()  # type: ignore[call-overload]


def test_both_engines_of_a_clip_model_are_loaded_proved_and_served(tmp_path: Path) -> None:
    metrics = Metrics()
    service = boot.start(settings(generic_root(tmp_path, see_and_read())), metrics, lambda message: None, MACHINE)
    assert list(service.lanes) == ["text", "image"]

    async def see() -> object:
        items = await service.encoders.run(lambda encoder: encoder.encode_images([picture(0), picture(1)]))
        return await service.lanes["image"].submit(items, Timing())

    assert np.allclose(np.linalg.norm(asyncio.run(see()), axis=1), 1, atol=1e-5)  # type: ignore[call-overload]
    assert 'queue_depth{tower="image"} 0.0' in metrics.text().decode()
    assert 'queue_depth{tower="text"} 0.0' in metrics.text().decode()


def test_a_clip_profile_that_lacks_an_engine_is_refused_by_its_names(tmp_path: Path) -> None:
    with pytest.raises(NoProfile, match=r"it lacks image\.plan or image\.blob or image\.onnx"):
        start(generic_root(tmp_path, see_and_read(), lacking="image.onnx"))


@pytest.mark.parametrize("damage", ["the engine for pictures is broken", "it is another model's"])
def test_when_one_engine_of_two_fails_the_other_is_closed(
    tmp_path: Path, damage: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = see_and_read()
    wrong = b"broken" if "broken" in damage else reranker().engines[ONLY]
    model = replace(model, engines={**model.engines, "image": wrong})
    closed: list[object] = []
    monkeypatch.setattr(OnnxRuntime, "close", lambda self: closed.append(self))
    with pytest.raises(NoProfile):
        start(generic_root(tmp_path, model))
    assert len(closed) == (1 if "broken" in damage else 2)


def test_batches_are_no_larger_than_the_settings_allow(root: Path, tiny: Tiny) -> None:
    metrics = Metrics()
    service = boot.start(replace(settings(root), max_batch_size=3), metrics, lambda message: None, MACHINE)

    async def embed() -> None:
        items = await service.encoders.run(lambda encoder: encoder.encode(["w1"] * 20))
        await service.lanes[ONLY].submit(items, Timing())
        await service.lanes[ONLY].batcher.drain(5)

    asyncio.run(embed())
    for thread in service.lanes[ONLY].batcher._threads:  # the last batch is counted after it is answered
        thread.join(5)
    sizes = {
        sample.labels["le"]: sample.value
        for family in metrics.registry.collect()
        for sample in family.samples
        if sample.name == "batch_size_bucket"
    }
    assert sizes["4.0"] == sizes["+Inf"] >= 7  # 20 items by threes; of a pair of buckets 2 and 4


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


def test_files_of_another_repository_serve_when_the_settings_name_it(root: Path, tmp_path: Path) -> None:
    mirror = tmp_path / "mirror"
    mirror.mkdir()
    (root / "blobs").rename(mirror / "blobs")
    with pytest.raises(NoProfile, match="blobs/blake3"):
        start(root)
    for named in ({"repository_override": mirror.as_uri()}, {"own_repository": mirror.as_uri()}):
        service = boot.start(replace(settings(root), **named), Metrics(), lambda message: None, MACHINE)
        assert service.repository_override == named.get("repository_override", "")


def test_a_process_answers_probes_while_it_loads_serves_and_drains_on_sigterm(root: Path, tiny: Tiny) -> None:
    with process(root, NIM_JSONL_LOGGING="1") as (child, url):
        wait_for(f"{url}/v1/health/live", 200, child)
        wait_for(f"{url}/v1/health/ready", 200, child)
        body = {"model": "tiny", "input": list(tiny.golden.texts[:4])}
        data = httpx.post(f"{url}/v1/embeddings", json=body).json()["data"]
        assert np.allclose([item["embedding"] for item in data], tiny.golden.vectors[:4], atol=1e-5)
        child.send_signal(signal.SIGTERM)
        output, _ = child.communicate(timeout=10)
        assert child.returncode == 0
        (line,) = [line for line in map(json.loads, output.splitlines()) if line["message"] == "request"]
        assert (line["route"], line["status"], line["num_items"]) == ("/v1/embeddings", 200, 4)
        assert 0 < line["engine_ms"] <= line["duration_ms"]


def test_a_signal_while_loading_ends_the_process_at_once(root: Path) -> None:
    with process(root) as (child, url):
        wait_for(f"{url}/v1/health/live", 200, child)
        started = time.monotonic()
        child.send_signal(signal.SIGTERM)
        child.communicate(timeout=20)
        assert child.returncode == 0
        assert time.monotonic() - started < 10  # two seconds on a machine that is not shared


@pytest.mark.parametrize(
    ("environ", "code", "words"),
    [
        ({"NIM_MODEL_PROFILE": "tiny__h100__fp8__tp1"}, 22, "No matching profile_id or profile description"),
        ({"NIM_MANIFEST_PATH": "/nowhere/manifest.yaml"}, 20, "cannot be read"),
        ({"NIM_SERVER_PORT": "http"}, 2, "NIM_SERVER_PORT"),
    ],
)
def test_a_start_that_cannot_work_exits_with_the_errors_code_and_words(
    root: Path, environ: dict[str, str], code: int, words: str
) -> None:
    with process(root, **environ) as (child, _):
        output, _ = child.communicate(timeout=60)
        assert child.returncode == code, output
        assert words in output


def test_variables_that_have_no_effect_are_said_once(root: Path) -> None:
    with process(root, NIM_GRPC_API_PORT="50051") as (child, url):
        wait_for(f"{url}/v1/health/live", 200, child)
        child.terminate()
        output, _ = child.communicate(timeout=20)
        assert output.count("NIM_GRPC_API_PORT") == 1
