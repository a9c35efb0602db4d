"""Draw pictures whose caption is known: one to three shapes of one colour, at random places and sizes."""

from __future__ import annotations

import io
import json
import math
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

SHAPES = ("circle", "square", "triangle", "star")
COLOURS = {
    "red": (214, 39, 40),
    "green": (44, 160, 44),
    "blue": (31, 90, 200),
    "yellow": (240, 200, 20),
    "purple": (140, 60, 180),
}
COUNTS = ("one", "two", "three")

TRAINING_PIXELS = 224
FILE_PIXELS = 256  # of the files: the processor has something to do
SPLITS = {"golden": 64, "calibration": 32, "test": 540}  # how many pictures of each; classes take turns
SHADES = 16  # a mottled background has this many patches a side
CELLS = 2  # shapes stand in the cells of a grid of this many a side, so that they do not overlap


@dataclass(frozen=True, kw_only=True)
class Scene:
    """What a picture shows."""

    count: int
    colour: str
    shape: str

    @property
    def caption(self) -> str:
        """ "three red circles"."""
        return f"{COUNTS[self.count - 1]} {self.colour} {self.shape}{'s' if self.count > 1 else ''}"


SCENES = tuple(
    Scene(count=count, colour=colour, shape=shape)
    for shape in SHAPES
    for colour in COLOURS
    for count in range(1, len(COUNTS) + 1)
)


def draw(scene: Scene, rng: np.random.Generator, pixels: int) -> Image.Image:
    """A square picture of the scene: RGB, on a light background that is plain or mottled."""
    picture = _background(rng, pixels)
    pen, cell = ImageDraw.Draw(picture), pixels / CELLS
    for place in rng.permutation(CELLS * CELLS)[: scene.count]:
        radius = cell * rng.uniform(0.32, 0.46)
        room = cell / 2 - radius
        x = (place % CELLS + 0.5) * cell + rng.uniform(-room, room)
        y = (place // CELLS + 0.5) * cell + rng.uniform(-room, room)
        fill = tuple(int(np.clip(part + rng.integers(-14, 15), 0, 255)) for part in COLOURS[scene.colour])
        _shape(pen, scene.shape, x, y, radius, rng.uniform(-0.12, 0.12), fill)
    return picture


def png(picture: Image.Image) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, "PNG", optimize=True)
    return buffer.getvalue()


def write_pictures(folder: Path, seed: int, sizes: Mapping[str, int] = SPLITS) -> None:
    """classes.json and <split>/<class index>/<n>.png; the folder is there whole or as it was before."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}-") as scratch:
        made = Path(scratch) / "pictures"
        for number, (split, num_pictures) in enumerate(sizes.items()):
            rng = np.random.default_rng([seed, number])
            for index in range(num_pictures):
                # A step without a common divisor: a split smaller than the classes still has every shape and colour.
                scene = index * 7 % len(SCENES)
                path = made / split / str(scene) / f"{index // len(SCENES)}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(png(draw(SCENES[scene], rng, FILE_PIXELS)))
        (made / "classes.json").write_text(json.dumps([scene.caption for scene in SCENES], indent=0) + "\n")
        if folder.exists():
            folder.rename(Path(scratch) / "before")
        made.rename(folder)


def _background(rng: np.random.Generator, pixels: int) -> Image.Image:
    base = rng.integers(215, 256) + rng.integers(-8, 9, 3)
    if rng.random() < 0.5:
        return Image.new("RGB", (pixels, pixels), tuple(np.clip(base, 0, 255).tolist()))
    shades = np.clip(base + rng.integers(-12, 13, (SHADES, SHADES, 1)), 0, 255).astype(np.uint8)
    return Image.fromarray(shades).resize((pixels, pixels), Image.Resampling.NEAREST)


def _shape(
    pen: ImageDraw.ImageDraw, shape: str, x: float, y: float, radius: float, turn: float, fill: tuple[int, ...]
) -> None:
    if shape == "circle":
        pen.ellipse((x - radius, y - radius, x + radius, y + radius), fill=fill)
        return
    corners = {"square": 4, "triangle": 3, "star": 10}[shape]
    start = turn + (math.pi / 4 if shape == "square" else -math.pi / 2)
    points = []
    for corner in range(corners):
        reach = radius * (0.42 if shape == "star" and corner % 2 else 1.0)
        angle = start + 2 * math.pi * corner / corners
        points.append((x + reach * math.cos(angle), y + reach * math.sin(angle)))
    pen.polygon(points, fill=fill)
