"""CLIP through the factory: its two graphs, its golden outputs, and how its engines are measured."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import onnxruntime
import pytest

from pipelines import stage
from pipelines.errors import ExportError, GateError
from pipelines.recipes import clip, clip_towers
from pipelines.recipes.golden import NUM_PROOF_ITEMS
from pipelines.stage import StageRequest, StageResult
from serving.tasks.clip import ClipSpec, Encoder, GoldenClip, load_golden
from serving.tasks.table import load_spec
from tests.support.clips import DIMENSION, MAX_TOKENS, SHAPES, SIDE, draw, save_clip

TEXTS = {"golden": [f"a text that is {n} characters long" * (n % 4 + 1) for n in range(20)], "calibration": ["x", "yy"]}
TOWERS = ("text", "image")


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a tiny CLIP of random weights, model/, and drawn pictures, pictures/."""
    folder = tmp_path_factory.mktemp("clip")
    save_clip(folder / "model", seed=0)
    draw().write_pictures(folder / "pictures", 0, {"golden": 6, "calibration": 3, "test": 15})
    (folder / "texts.json").write_text(json.dumps(TEXTS))
    return folder


@pytest.fixture(scope="module")
def exported(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, Path]:
    return run(
        "export", export_params(base), {"texts.json": base / "texts.json"}, tmp_path_factory.mktemp("out")
    ).outputs


@pytest.fixture
def measured(base: Path, exported: Mapping[str, Path], tmp_path: Path) -> Callable[..., dict[str, Any]]:
    """Run the measure stage with some params and inputs replaced; returns what it wrote."""

    def measure(changed: Mapping[str, Any] | None = None, **replaced: Path) -> dict[str, Any]:
        folder = tmp_path / f"run-{len(list(tmp_path.iterdir()))}"
        folder.mkdir()
        params = {
            "task": "clip",
            "precision": "fp32",
            "evaluated": "engine",
            "backend": "onnxruntime",
            "pictures": "pictures",
            "source_base": str(base),
            **(changed or {}),
        }
        inputs = {
            **{name: exported[name] for name in ("tokenizer.json", "task.json", "golden.json")},
            **{f"engine.{tower}": exported[f"{tower}.onnx"] for tower in TOWERS},
            **{f"fp32.{tower}.onnx": exported[f"{tower}.onnx"] for tower in TOWERS},
            "texts.json": base / "texts.json",
            **{name.replace("__", "."): path for name, path in replaced.items()},
        }
        (written,) = run("measure", params, inputs, folder).outputs.values()
        return dict(json.loads(written.read_bytes()))

    return measure


def run(name: str, params: Mapping[str, Any], inputs: Mapping[str, Path], folder: Path) -> StageResult:
    return stage.run(StageRequest(stage=name, subject="a test", params=params, inputs=inputs, output_dir=folder))


def export_params(base: Path, **changed: Any) -> dict[str, Any]:
    return {
        "task": "clip",
        "model": "tiny",
        "source": "./model",
        "source_base": str(base),
        "served_name": "tiny-clip",
        "release": "0.1.0",
        "max_tokens": None,
        "shapes": SHAPES,
        "golden": {"num_texts": 70},
        "pictures": "pictures",
        **changed,
    }


def spec_of(exported: Mapping[str, Path]) -> ClipSpec:
    spec = load_spec(exported["task.json"].read_bytes())
    assert isinstance(spec, ClipSpec)
    return spec


def golden_of(exported: Mapping[str, Path], name: str) -> GoldenClip:
    return load_golden(exported[name].read_bytes())


def test_each_tower_is_a_graph_with_named_axes_that_gives_vectors(exported: Mapping[str, Path]):
    found = {tower: onnxruntime.InferenceSession(exported[f"{tower}.onnx"].read_bytes()) for tower in TOWERS}
    inputs = {tower: {i.name: i.shape for i in session.get_inputs()} for tower, session in found.items()}
    assert inputs == {
        "text": {"input_ids": ["B", "T"], "attention_mask": ["B", "T"]},
        "image": {"pixel_values": ["B", 3, SIDE, SIDE]},
    }
    for session in found.values():
        assert [o.shape for o in session.get_outputs()] == [["B", DIMENSION]]


@pytest.mark.parametrize("eos_token_id", [None, 2])
def test_padded_texts_get_the_vectors_that_transformers_gives_them_alone(tmp_path: Path, eos_token_id: int | None):
    import torch
    from transformers import CLIPModel, CLIPTokenizerFast

    # 2 is what configurations said before their authors noticed: then the text ends at its largest id.
    save_clip(tmp_path / "model", seed=3, eos_token_id=eos_token_id)
    models = clip_towers.to_onnx(tmp_path / "model", tmp_path)
    tokenizer = CLIPTokenizerFast.from_pretrained(tmp_path / "model")
    texts = ["a", "three red circles", "one"]
    together = tokenizer(texts, padding=True, return_tensors="np")
    session = onnxruntime.InferenceSession(models["text"].SerializeToString())
    (found,) = session.run(None, {name: together[name].astype(np.int64) for name in ("input_ids", "attention_mask")})
    model = CLIPModel.from_pretrained(tmp_path / "model").eval()
    with torch.inference_mode():
        alone = [model.get_text_features(**tokenizer([text], return_tensors="pt"))[0].numpy() for text in texts]
    expected = np.stack([vector / np.linalg.norm(vector) for vector in alone])
    assert np.abs(found - expected).max() < 1e-5
    assert (expected @ expected.T)[0, 1] < 0.99, "the texts must differ, or nothing was tested"


def test_golden_outputs_are_captions_then_longer_texts_and_every_golden_picture(
    exported: Mapping[str, Path], base: Path
):
    golden = golden_of(exported, "golden.json")
    captions = json.loads((base / "pictures" / "classes.json").read_bytes())
    assert golden.texts == (*captions, *TEXTS["golden"][:10])
    assert golden.text_vectors.shape == (70, DIMENSION)
    assert len(golden.images) == 6
    assert np.linalg.norm(golden.image_vectors, axis=1) == pytest.approx(np.ones(6), abs=1e-5)


def test_what_ships_as_proof_holds_the_captions_of_its_pictures(exported: Mapping[str, Path], base: Path):
    golden, proof = golden_of(exported, "golden.json"), golden_of(exported, "proof.json")
    captions = json.loads((base / "pictures" / "classes.json").read_bytes())
    labels = [int(path.name) for path in (base / "pictures" / "golden").iterdir()]
    assert {captions[label] for label in labels} <= set(proof.texts)
    assert len(proof.texts) == NUM_PROOF_ITEMS
    assert max(len(text) for text in proof.texts) == max(len(text) for text in golden.texts)
    index = [golden.texts.index(text) for text in proof.texts]
    assert np.array_equal(golden.text_vectors[index], proof.text_vectors)


def test_the_task_file_says_how_pictures_become_numbers(exported: Mapping[str, Path]):
    spec = spec_of(exported)
    assert (spec.image_size, spec.num_patches, spec.dimension, spec.max_tokens) == (SIDE, 4, DIMENSION, MAX_TOKENS)
    assert spec.image_mean == pytest.approx((0.48145466, 0.4578275, 0.40821073))
    assert spec.text_input_names == ("input_ids", "attention_mask")
    assert spec.max_images == 6


def test_a_processor_that_the_server_does_not_follow_is_refused_with_every_difference(base: Path, tmp_path: Path):
    save_clip(tmp_path / "model", seed=0, resample=2, do_center_crop=False)
    shutil.copytree(base / "pictures", tmp_path / "pictures")
    (tmp_path / "out").mkdir()
    params = export_params(tmp_path, shapes={**SHAPES, "max": [6, MAX_TOKENS + 8]})
    with pytest.raises(ExportError) as caught:
        run("export", params, {"texts.json": base / "texts.json"}, tmp_path / "out")
    told = str(caught.value)
    assert "resample is 2, the server preprocesses with 3" in told
    assert "do_center_crop is False" in told
    assert f"shapes.max has {MAX_TOKENS + 8} tokens, the model has positions for {MAX_TOKENS}" in told


def test_a_folder_of_another_kind_of_model_is_refused(tmp_path: Path):
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    with pytest.raises(ExportError, match="says model_type 'bert'"):
        clip_towers.load(tmp_path)


def test_each_tower_is_calibrated_with_what_it_sees(exported: Mapping[str, Path], base: Path):
    params = {"pictures": "pictures", "source_base": str(base)}
    spec = msgspec.structs.replace(spec_of(exported), max_tokens=12)
    encoder = Encoder(exported["tokenizer.json"].read_bytes(), spec)
    texts = clip.calibration(encoder, "text", ["x"] * 62, params)
    images = clip.calibration(encoder, "image", ["x"] * 62, params)
    assert len(texts) == 62, "60 captions and two texts"
    assert max(item.size for item in texts) == 12
    assert [item.shape for item in images] == [(3, SIDE, SIDE)] * 3


def test_the_reference_measured_against_itself_loses_nothing(measured: Callable[..., dict[str, Any]]):
    metrics = measured()
    assert metrics["cosine"]["num_texts"] == len(metrics["cosine"]["values"]) == 76
    assert metrics["cosine"]["min"] == pytest.approx(1, abs=1e-5)
    assert metrics["batch_invariance"]["min_cosine"] == pytest.approx(1, abs=1e-5)
    assert metrics["realized_precision"] == {"fp32": 1.0}
    found = metrics["zero_shot"]
    assert (found["num_images"], found["num_classes"], found["drop"]) == (15, 60, 0)
    assert found["top1"] == found["reference_top1"]


def test_engines_of_another_model_lose_their_cosine_tower_by_tower(
    measured: Callable[..., dict[str, Any]], tmp_path: Path
):
    save_clip(tmp_path / "other", seed=1)
    other = tmp_path / "image.onnx"
    (tmp_path / "scratch").mkdir()
    other.write_bytes(clip_towers.to_onnx(tmp_path / "other", tmp_path / "scratch")["image"].SerializeToString())
    metrics = measured(engine__image=other)
    assert metrics["text_cosine_min"] == pytest.approx(1, abs=1e-5)
    assert metrics["image_cosine_min"] < 0.9
    assert metrics["cosine"]["min"] == metrics["image_cosine_min"]


def test_the_gallery_shows_pictures_with_their_nearest_captions(measured: Callable[..., dict[str, Any]], base: Path):
    shown = measured()["gallery"]
    captions = json.loads((base / "pictures" / "classes.json").read_bytes())
    assert len(shown) == 12
    for entry in shown:
        assert entry["class"] in captions
        cosines = [cosine for _, cosine in entry["nearest"]]
        assert len(cosines) == 3
        assert cosines == sorted(cosines, reverse=True)


def test_a_recorded_reference_gives_what_running_it_gives(
    measured: Callable[..., dict[str, Any]], exported: Mapping[str, Path], tmp_path: Path
):
    recorded = tmp_path / "reference.json"
    recorded.write_text(json.dumps(measured({"evaluated": "reference"})))
    assert measured(reference__json=recorded)["zero_shot"] == measured()["zero_shot"]


def test_a_reference_of_other_pictures_is_refused(measured: Callable[..., dict[str, Any]], tmp_path: Path):
    other = tmp_path / "reference.json"
    other.write_text(json.dumps({"set": "photos", "pictures_digest": "sha256:00", "top1": [1]}))
    with pytest.raises(GateError, match=r"of other pictures \(photos\)"):
        measured(reference__json=other)


def test_both_engines_are_timed_in_turn_with_those_above(
    measured: Callable[..., dict[str, Any]], exported: Mapping[str, Path]
):
    baseline = {f"baseline__{tower}": exported[f"{tower}.onnx"] for tower in TOWERS}
    found = measured({"speed": True, "baseline": {"backend": "onnxruntime", "precision": "fp32"}}, **baseline)["speed"]
    assert found["towers"].keys() == set(TOWERS)
    assert found["towers"]["image"]["shape"] == [6, 3, SIDE, SIDE], "as many pictures as the engine takes"
    assert found["throughput_ratio"] == min(tower["throughput_ratio"] for tower in found["towers"].values())


@pytest.mark.slow
def test_both_towers_are_written_in_fp16_and_compiled(
    exported: Mapping[str, Path], base: Path, measured: Callable[..., dict[str, Any]], tmp_path: Path
):
    for name in ("quantize", "compile"):
        (tmp_path / name).mkdir()
    graphs = {f"{tower}.onnx": exported[f"{tower}.onnx"] for tower in TOWERS}
    files = {name: exported[name] for name in ("tokenizer.json", "task.json")}
    typed = run("quantize", {"task": "clip", "precision": "fp16"}, {**graphs, **files}, tmp_path / "quantize").outputs
    metrics = measured(
        {"precision": "fp16", "evaluated": "typed-onnx"}, **{f"engine__{t}": typed[f"{t}.onnx"] for t in TOWERS}
    )
    assert metrics["realized_precision"] == {"fp16": 1.0}
    assert 0.999 < metrics["cosine"]["min"] < 1
    params = {
        "task": "clip",
        "compiler": "tensorrt-rtx",
        "precision": "fp16",
        "shapes": SHAPES,
        "compute_capability": "8.9",
    }
    engines = run("compile", params, typed, tmp_path / "compile").outputs
    assert {name: path.name for name, path in engines.items()} == {
        "engine.text": "text.plan",
        "engine.image": "image.plan",
    }
    assert all(path.stat().st_size > 10_000 for path in engines.values())
