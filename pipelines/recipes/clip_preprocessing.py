"""How a CLIP model turns images into numbers, and whether the server's preprocessing does the same."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from pipelines.errors import ExportError
from serving.tasks.base import Item
from serving.tasks.clip import ClipSpec

MAX_PIXEL_DIFFERENCE = 1.0  # of 255, between the server's preprocessing and the model's own

Channels = tuple[float, float, float]


def normalization(folder: Path, side: int, problems: list[str]) -> tuple[Channels, Channels]:
    """Mean and deviation of each channel. Adds to `problems` every setting that the server's preprocessing lacks."""
    from transformers import CLIPImageProcessor

    if not (folder / "preprocessor_config.json").is_file():
        problems.append("preprocessor_config.json is missing: it says how pictures become numbers")
        return (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)
    processor = CLIPImageProcessor.from_pretrained(folder, local_files_only=True)
    settings = {
        "do_convert_rgb": (processor.do_convert_rgb, True),
        "do_resize": (processor.do_resize, True),
        "size": (dict(processor.size), {"shortest_edge": side}),
        "resample": (int(processor.resample), 3),  # PIL's bicubic
        "do_center_crop": (processor.do_center_crop, True),
        "crop_size": (dict(processor.crop_size), {"height": side, "width": side}),
        "do_rescale": (processor.do_rescale, True),
        "rescale_factor": (round(processor.rescale_factor * 255, 6), 1.0),
        "do_normalize": (processor.do_normalize, True),
    }
    problems.extend(
        f"preprocessor_config.json: {name} is {value}, the server preprocesses with {expected} for this model"
        for name, (value, expected) in settings.items()
        if value != expected
    )
    mean, std = ((float(r), float(g), float(b)) for r, g, b in (processor.image_mean, processor.image_std))
    return mean, std


def check_pixels(pixels: Sequence[Item], files: Sequence[bytes], folder: Path, spec: ClipSpec) -> None:
    """Raise ExportError where the model's own processor gives other pixels than the server, which has its own code."""
    from PIL import Image
    from transformers import CLIPImageProcessor

    processor = CLIPImageProcessor.from_pretrained(folder, local_files_only=True)
    std = np.array(spec.image_std, dtype=np.float32).reshape(3, 1, 1)
    for index, (data, ours) in enumerate(zip(files, pixels, strict=True)):
        with Image.open(io.BytesIO(data)) as opened:
            theirs = processor(opened, return_tensors="np")["pixel_values"][0]
        difference = float(np.abs((ours - theirs) * std).max()) * 255
        if difference > MAX_PIXEL_DIFFERENCE * (1 + 1e-3):
            raise ExportError(
                f"{folder.name}: the server's pixels of golden picture {index} differ by {difference:.2f} of 255 from "
                "those of the model's own processor; see preprocessor_config.json for what it does otherwise"
            )
