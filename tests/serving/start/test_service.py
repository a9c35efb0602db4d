"""A profile as a service: every engine of its task loaded, proved, and behind its own queue."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from serving.backends.base import Inputs
from serving.backends.onnxruntime import OnnxRuntime
from serving.backends.openvino import OpenVino
from serving.batching.lanes import Timing
from serving.errors import NoProfile, ProofFailed
from serving.start import boot
from serving.start.layout import Layout
from serving.tasks.base import ONLY
from serving.watch.metrics import Metrics
from tests.support.boots import MACHINE, generic_root, profile, settings, start
from tests.support.profiles import FIRST, GENERIC, SECOND, Tiny, add_profile, write_manifest
from tests.support.tiny_models import picture, reranker, see_and_read


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


def test_texts_longer_than_the_engine_takes_are_refused_at_the_start(root: Path, tiny: Tiny) -> None:
    files = {file.path: (root / file.uri).read_bytes() for file in profile(root, SECOND).files}
    files["task.json"] = files["task.json"].replace(b'"max_tokens":32', b'"max_tokens":64')
    write_manifest(root, [add_profile(root, SECOND, GENERIC, files)])
    with pytest.raises(NoProfile, match="may have 64 tokens, the engine takes 32"):
        start(root)


def test_served_names_come_from_the_settings_when_given(root: Path) -> None:
    named = replace(settings(root), served_model_names=("org/tiny", "tiny"))
    assert boot.start(named, Metrics(), lambda message: None, MACHINE).names == ("org/tiny", "tiny")


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


def test_files_of_another_repository_serve_when_the_settings_name_it(root: Path, tmp_path: Path) -> None:
    mirror = tmp_path / "mirror"
    mirror.mkdir()
    (root / "blobs").rename(mirror / "blobs")
    with pytest.raises(NoProfile, match="blobs/blake3"):
        start(root)
    for named in ({"repository_override": mirror.as_uri()}, {"own_repository": mirror.as_uri()}):
        service = boot.start(replace(settings(root), **named), Metrics(), lambda message: None, MACHINE)
        assert service.repository_override == named.get("repository_override", "")
