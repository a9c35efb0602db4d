"""A folder of pictures: their classes, captions and digest, and everything that is wrong with it at once."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest
from PIL import Image

from pipelines.datasets import images
from pipelines.errors import GateError


def png(colour: tuple[int, int, int]) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (8, 8), colour).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Twelve classes, and in each split a picture of classes 0, 2 and 11."""
    root = tmp_path / "shown"
    for split in images.SPLITS:
        for label in (0, 2, 11):
            path = root / split / str(label) / "0.png"
            path.parent.mkdir(parents=True)
            path.write_bytes(png((label, 0, 0)))
    (root / "classes.json").write_text(json.dumps([f"caption {n}" for n in range(12)]))
    return root


def test_pictures_come_with_their_classes_in_the_order_of_the_classes(folder: Path):
    (folder / "test" / "2" / "10.jpg").write_bytes(b"\xff\xd8\xff")
    (folder / "test" / "2" / "9.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    found = images.read(folder)
    assert found.classes[11] == "caption 11"
    assert [label for _, label in found.splits["golden"]] == [0, 2, 11], "and not 0, 11, 2"
    assert found.splits["golden"][1] == (png((2, 0, 0)), 2)
    assert [data[:2] for data, label in found.splits["test"] if label == 2] == [b"\x89P", b"\x89P", b"\xff\xd8"]


def test_everything_that_is_wrong_is_told_at_once(folder: Path):
    (folder / "classes.json").write_text(json.dumps(["one", "two", "one"]))
    (folder / "golden" / "0" / "0.png").unlink()
    (folder / "golden" / "2" / "0.png").unlink()
    (folder / "golden" / "11" / "0.png").unlink()
    (folder / "golden" / "11").rmdir()
    (folder / "test" / "0" / "notes.txt").write_text("hello")
    (folder / "test" / "0" / "1.png").write_bytes(b"<svg></svg>")
    with pytest.raises(GateError) as caught:
        images.read(folder)
    told = str(caught.value)
    assert "pictures shown:" in told
    assert "classes.json: 'one' is there twice" in told
    assert "golden: there are no pictures" in told
    assert "calibration/11: is no index of a class; classes.json has 0 to 2" in told
    assert "test/0/notes.txt: is no picture" in told
    assert "test/0/1.png: is neither PNG, JPEG nor WebP" in told
    assert "<index of the class>/<name>.png" in told, "the remedy"


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (b"{", "is not JSON"),
        (b'{"0": "a"}', "must be a list of captions"),
        (b'["a", 2]', "must be a list of captions"),
        (b'["a", " "]', "must be a list of captions"),
        (b'["a"]', "needs two captions or more"),
    ],
)
def test_captions_that_cannot_be_used_are_refused(folder: Path, content: bytes, told: str):
    (folder / "classes.json").write_bytes(content)
    with pytest.raises(GateError, match=told):
        images.read(folder)


def test_a_folder_that_is_not_there_says_what_belongs_in_it(tmp_path: Path):
    with pytest.raises(GateError, match=r"classes\.json: is missing"):
        images.read(tmp_path / "nowhere")


def test_the_digest_follows_the_content_and_its_place_and_nothing_else(folder: Path, tmp_path: Path):
    before = images.images_digest(folder)
    moved = folder.rename(tmp_path / "elsewhere")
    assert images.images_digest(moved) == before
    path = moved / "test" / "2" / "0.png"
    content = path.read_bytes()
    path.write_bytes(png((9, 9, 9)))
    changed = images.images_digest(moved)
    path.unlink()
    (moved / "test" / "0" / "1.png").write_bytes(content)
    relabelled = images.images_digest(moved)
    assert len({before, changed, relabelled}) == 3
    assert before.startswith("sha256:")
