"""Measure CLIP's two engines: cosine to the fp32 reference, zero-shot classification of labelled images."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipelines.datasets import images
from pipelines.measure.base import LabelledSet, Measure, Runners, Score, cosine, cosines_alone_and_together
from pipelines.measure.runner import Items, Outputs, Runner, rounded, unit
from pipelines.measure.speed import Loads, text_loads
from serving.tasks.base import Recorded
from serving.tasks.clip import IMAGE, TEXT, ClipSpec, Encoder

INVARIANCE_ITEMS, INVARIANCE_BATCH = 12, 24
SPEED_IMAGES = 8  # at once: more only take longer on the machine of a factory
GALLERY_IMAGES, GALLERY_CAPTIONS, GALLERY_PIXELS = 12, 3, 160  # what the report shows


def labelled(encoder: Encoder, params: Mapping[str, Any], inputs: Mapping[str, Path]) -> LabelledSet:
    """The test images and the captions to choose from."""
    folder = Path(params.get("source_base", ".")) / params["pictures"]
    image_set = images.read(folder)
    files, labels = zip(*image_set.splits["test"], strict=True)
    captions = encoder.encode_texts(image_set.classes, truncate="END")
    identity = {"set": folder.name, "pictures_digest": images.images_digest(folder)}

    def score(runners: Runners) -> Score:
        """1 for each image whose nearest caption is its own."""
        text_vectors = runners[TEXT].vectors(captions).astype(np.float64)
        cosines = _image_vectors(encoder, files, runners[IMAGE]).astype(np.float64) @ text_vectors.T
        return Score(
            values=(cosines.argmax(axis=1) == np.array(labels)).astype(np.float64),
            metrics={"gallery": gallery(cosines, files, labels, image_set.classes)},
        )

    return LabelledSet(
        section="zero_shot",
        figure="top1",
        identity=identity,
        describe=lambda record: f"{'' if record == identity else 'other '}pictures ({record['set']})",
        facts={"set": folder.name, "num_images": len(files), "num_classes": len(image_set.classes)},
        score=score,
    )


def golden(outputs: Mapping[str, Outputs], recorded: Sequence[Recorded]) -> dict[str, Any]:
    vectors = {tower: unit(each) for tower, each in outputs.items()}
    reference = {each.tower: each.rows for each in recorded}
    return {
        "cosine": cosine(
            np.concatenate([vectors[TEXT], vectors[IMAGE]]), np.concatenate([reference[TEXT], reference[IMAGE]])
        ),
        "num_golden_pictures": len(vectors[IMAGE]),
        "text_cosine_min": cosine(vectors[TEXT], reference[TEXT])["min"],
        "image_cosine_min": cosine(vectors[IMAGE], reference[IMAGE])["min"],
    }


def invariance(runners: Runners, items: Mapping[str, Items]) -> dict[str, Any]:
    """Of texts of mixed lengths, and of images among others."""
    values = np.concatenate(
        [
            cosines_alone_and_together(runner, items[tower], num_probes=INVARIANCE_ITEMS, batch=INVARIANCE_BATCH)[0]
            for tower, runner in runners.items()
        ]
    )
    return {"min_cosine": rounded(values.min()), "num_items": len(values), "batch_size": INVARIANCE_BATCH}


def loads(spec: ClipSpec, items: Mapping[str, Items]) -> dict[str, Loads]:
    text, image = spec.towers
    pixels = items[IMAGE]
    batch = [pixels[i % len(pixels)] for i in range(min(SPEED_IMAGES, image.max_batch))]
    shape = pixels[0].shape
    return {
        TEXT: text_loads(items[TEXT], text, spec),
        IMAGE: Loads(batch=batch, single=batch[:1], shape=(len(batch), *shape), query_shape=(1, *shape)),
    }


def gallery(
    cosines: NDArray[np.float64], files: Sequence[bytes], labels: Sequence[int], classes: Sequence[str]
) -> list[dict[str, Any]]:
    """Some test images, spread over the classes, each with the captions nearest to it. cosines: (images, classes)."""
    num = len(files)
    entries = []
    for index in sorted({int(i) for i in np.linspace(0, num - 1, min(GALLERY_IMAGES, num)).round()}):
        nearest = np.argsort(-cosines[index], kind="stable")[:GALLERY_CAPTIONS]
        entries.append(
            {
                "image": base64.b64encode(_thumbnail(files[index])).decode("ascii"),
                "class": classes[labels[index]],
                "nearest": [[classes[i], round(float(cosines[index, i]), 4)] for i in nearest],
            }
        )
    return entries


def _image_vectors(encoder: Encoder, files: Sequence[bytes], runner: Runner) -> Outputs:
    """(images, D). Encoded a part at a time: 500 images of 224 pixels a side are 300 MB of numbers."""
    parts = [files[i : i + 64] for i in range(0, len(files), 64)]
    return np.concatenate([runner.vectors(images.encode(encoder, part, "test")) for part in parts])


def _thumbnail(data: bytes) -> bytes:
    """An image as PNG, small enough to stand in a page."""
    from PIL import Image, ImageOps

    with Image.open(io.BytesIO(data)) as opened:
        image = opened.convert("RGB")
    buffer = io.BytesIO()
    ImageOps.contain(image, (GALLERY_PIXELS, GALLERY_PIXELS)).save(buffer, "PNG", optimize=True)
    return buffer.getvalue()


MEASURE = Measure(
    labelled=labelled,
    golden=golden,
    invariance=invariance,
    loads=loads,
    facts={
        "cosine_mean": ("cosine", "mean"),
        "cosine_min": ("cosine", "min"),
        "top1": ("zero_shot", "top1"),
    },
)
