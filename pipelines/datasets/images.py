"""Read labelled images: the one module that knows how their folder is laid out."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipelines.errors import GateError
from serving.tasks.clip import Encoder
from serving.tasks.images import FORMATS, BadImage

CLASSES = "classes.json"
SPLITS = ("golden", "calibration", "test")
ENDINGS = frozenset({".png", ".jpg", ".jpeg", ".webp"})  # what the server takes
MAX_PROBLEMS = 20  # of a damaged folder: more would hide the first

Labelled = tuple[bytes, int]  # an image file's content, and the index of its class


@dataclass(frozen=True, kw_only=True)
class ImageSet:
    """Images with their classes. Within a split they come in the order of their paths: class by class."""

    classes: tuple[str, ...]  # captions: "three red circles"
    splits: Mapping[str, tuple[Labelled, ...]]  # each of SPLITS


def images_digest(folder: Path) -> str:
    """ "sha256:…" over the set's files: what a verdict on it depends on. `read` tells what is missing."""
    total = hashlib.sha256()
    listed = [path for split in SPLITS for path in sorted((folder / split).glob("*/*"))]
    for path in (folder / CLASSES, *listed):
        if path.is_file():
            digest = hashlib.sha256(path.read_bytes()).hexdigest()
            total.update(f"{path.relative_to(folder).as_posix()} {digest}\n".encode())
    return f"sha256:{total.hexdigest()}"


def read(folder: Path) -> ImageSet:
    """Read classes.json and <split>/<class index>/<name>.png. Raises GateError that lists what is wrong and where."""
    problems: list[str] = []
    classes = _classes(folder, problems)
    splits = {split: tuple(_split(folder, split, len(classes), problems)) for split in SPLITS}
    if problems:
        raise _error(folder, problems)
    return ImageSet(classes=classes, splits=splits)


def encode(encoder: Encoder, files: Sequence[bytes], split: str) -> list[NDArray[np.float32]]:
    """N image files of a split -> N arrays (3, S, S), as the server makes them. Raises GateError for a damaged one."""
    try:
        return encoder.encode_images(files)
    except BadImage as error:
        raise GateError(f"pictures, split {split}: {error}, counted class by class; replace or remove it") from error


def _classes(folder: Path, problems: list[str]) -> tuple[str, ...]:
    if not (folder / CLASSES).is_file():
        problems.append(f"{CLASSES}: is missing")
        return ()
    try:
        content: Any = json.loads((folder / CLASSES).read_bytes())
    except ValueError as error:
        problems.append(f"{CLASSES}: is not JSON: {error}")
        return ()
    if not isinstance(content, list) or not all(isinstance(caption, str) and caption.strip() for caption in content):
        problems.append(f'{CLASSES}: must be a list of captions: ["one red circle", …]')
        return ()
    twice = sorted({caption for caption in content if content.count(caption) > 1})
    problems.extend(f"{CLASSES}: '{caption}' is there twice; make them differ" for caption in twice)
    if len(content) < 2:
        problems.append(f"{CLASSES}: needs two captions or more; there is nothing to choose between")
    return tuple(content)


def _split(folder: Path, split: str, num_classes: int, problems: list[str]) -> Iterator[Labelled]:
    """The images of a split, class by class."""
    before, num_images = len(problems), 0
    names = [path.name for path in (folder / split).iterdir()] if (folder / split).is_dir() else []
    for name in sorted(names, key=lambda name: (len(name), name)):  # 2 before 10
        if not (name.isascii() and name.isdigit() and (int(name) < num_classes or not num_classes)):
            problems.append(f"{split}/{name}: is no index of a class; {CLASSES} has 0 to {num_classes - 1}")
            continue
        for path in sorted((folder / split / name).iterdir(), key=lambda path: (len(path.name), path.name)):
            if path.suffix.lower() not in ENDINGS:
                problems.append(f"{split}/{name}/{path.name}: is no picture; {', '.join(sorted(ENDINGS))} are read")
                continue
            num_images += 1
            data = path.read_bytes()
            if not data.startswith(tuple(FORMATS.values())):
                problems.append(f"{split}/{name}/{path.name}: is neither PNG, JPEG nor WebP")
            yield data, int(name)
    if not num_images and len(problems) == before:
        problems.append(f"{split}: there are no pictures")


def _error(folder: Path, problems: list[str]) -> GateError:
    shown = [f"  {problem}" for problem in problems[:MAX_PROBLEMS]]
    if len(problems) > MAX_PROBLEMS:
        shown.append(f"  … and {len(problems) - MAX_PROBLEMS} more")
    remedy = f"  the layout: {CLASSES} (a list of captions) and {{{','.join(SPLITS)}}}/<index of the class>/<name>.png"
    return GateError("\n".join([f"pictures {folder.name}:", *shown, remedy]))
