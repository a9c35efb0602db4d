"""The script that makes the CLIP demo's model: what it writes, and what it refuses to write."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from pipelines.datasets import images
from tests.support.clips import draw

SCRIPT = Path(__file__).parents[2] / "examples" / "clip" / "train.py"


def train(folder: Path, *options: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(SCRIPT), "--output", str(folder / "model"), "--pictures", str(folder / "pictures")]
    return subprocess.run([*command, *options], capture_output=True, text=True, check=False, timeout=280)


@pytest.mark.slow
def test_a_short_training_writes_a_folder_that_transformers_reads_and_pictures_that_the_factory_reads(tmp_path: Path):
    from transformers import CLIPModel, CLIPProcessor

    done = train(tmp_path, "--steps", "20", "--min-accuracy", "0")
    assert done.returncode == 0, done.stderr
    assert "zero-shot accuracy" in done.stdout
    shown = images.read(tmp_path / "pictures")
    assert {split: len(found) for split, found in shown.splits.items()} == {
        "golden": 64,
        "calibration": 32,
        "test": 540,
    }
    assert set(shown.classes) >= {"one red circle", "three purple stars"}
    model = CLIPModel.from_pretrained(tmp_path / "model", local_files_only=True)
    processor = CLIPProcessor.from_pretrained(tmp_path / "model", local_files_only=True)
    words = processor.tokenizer(["three red circles"])["input_ids"][0]
    assert processor.tokenizer.decode(words) == "<|startoftext|>three red circles <|endoftext|>"
    assert len(words) == 5, "the words of captions are tokens of their own"
    assert model.config.text_config.eos_token_id == words[-1]
    assert (tmp_path / "model" / "tokenizer.json").is_file()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model", "pictures"]


@pytest.mark.slow
def test_a_model_that_learned_too_little_is_not_written(tmp_path: Path):
    done = train(tmp_path, "--steps", "1")
    assert done.returncode == 1
    assert "below 90%: train longer, with --steps 2" in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_the_same_seed_draws_the_same_pictures(tmp_path: Path):
    sizes = {"golden": 3, "calibration": 2, "test": 4}
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        draw().write_pictures(tmp_path / name, seed, sizes)
    a, b, c = (images.images_digest(tmp_path / name) for name in "abc")
    assert a == b != c


def test_pictures_that_are_written_again_replace_those_before_them(tmp_path: Path):
    draw().write_pictures(tmp_path / "shown", 1, {"golden": 9, "calibration": 1, "test": 1})
    draw().write_pictures(tmp_path / "shown", 1, {"golden": 2, "calibration": 1, "test": 1})
    assert len(list((tmp_path / "shown" / "golden").glob("*/*.png"))) == 2
    assert [path.name for path in tmp_path.iterdir()] == ["shown"]


@pytest.mark.parametrize("count", [1, 2, 3])
def test_a_picture_shows_as_many_shapes_as_its_caption_says(count: int):
    drawn = draw()
    scene = drawn.Scene(count=count, colour="red", shape="square")
    assert scene.caption.startswith(("one", "two", "three")[count - 1])
    for seed in range(20):
        pixels = np.asarray(drawn.draw(scene, np.random.default_rng(seed), 224)).astype(int)
        inside = (pixels[..., 0] - pixels[..., 1]) > 90  # the background is light, so it is nowhere red
        assert _num_regions(inside) == count


def _num_regions(inside: np.ndarray) -> int:
    """How many connected regions a mask has, by filling one after the other."""
    left, num = inside.copy(), 0
    while left.any():
        num += 1
        stack = [tuple(np.argwhere(left)[0])]
        while stack:
            y, x = stack.pop()
            if 0 <= y < left.shape[0] and 0 <= x < left.shape[1] and left[y, x]:
                left[y, x] = False
                stack += [(y + 1, x), (y - 1, x), (y, x + 1), (y, x - 1)]
    return num


def test_captions_are_told_apart_and_every_split_sees_every_shape(tmp_path: Path):
    drawn = draw()
    drawn.write_pictures(tmp_path / "shown", 0, {"golden": 64, "calibration": 32, "test": 60})
    captions = json.loads((tmp_path / "shown" / "classes.json").read_bytes())
    assert len(set(captions)) == len(captions) == 60
    calibration = {captions[label] for _, label in images.read(tmp_path / "shown").splits["calibration"]}
    for word in (*drawn.SHAPES, *drawn.COLOURS, *drawn.COUNTS):
        assert any(word in caption for caption in calibration), word
