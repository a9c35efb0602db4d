"""How the factory treats a CLIP model: two graphs, its golden texts and images, and the files a server needs."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from pipelines.datasets import images
from pipelines.errors import ExportError
from pipelines.recipes import clip_preprocessing, clip_towers, golden
from pipelines.tasks.base import Answers
from serving.contract.profile import ShapeRange
from serving.tasks.base import Item
from serving.tasks.clip import IMAGE, TEXT, ClipSpec, Encoder, GoldenClip, dump_golden

to_onnx = clip_towers.to_onnx
NUM_PROOF_IMAGES = 8
MAX_RAW_BYTES = 64 * 2**10  # a larger golden image is stored smaller


def answers(
    models: Mapping[str, Any], folder: Path, params: Mapping[str, Any], texts: Mapping[str, Any], tokenizer: bytes
) -> Answers:
    """The spec and golden outputs. Raises ExportError."""
    theirs = golden.load_tokenizer(folder)
    spec = _spec(models, folder, params, theirs.pad_token_id)
    encoder, image_set = Encoder(tokenizer, spec), _image_set(params)
    chosen = golden_texts(image_set.classes, texts["golden"], params["golden"]["num_texts"])
    files = tuple(_small(data, spec.image_size) for data, _ in image_set.splits["golden"])
    pixels = images.encode(encoder, files, "golden")
    items = encoder.encode_texts(chosen, truncate="END")
    golden.check_tokens(chosen, items, theirs(list(chosen), truncation=True, max_length=spec.max_tokens)["input_ids"])
    clip_preprocessing.check_pixels(pixels, files, folder, spec)
    model = clip_towers.load(folder)
    outputs = GoldenClip(
        texts=chosen,
        text_vectors=clip_towers.text_reference(model, items),
        images=files,
        image_vectors=clip_towers.image_reference(model, pixels),
    )
    captions = [image_set.classes[label] for _, label in image_set.splits["golden"]]
    return Answers(
        spec=spec,
        golden=dump_golden(outputs),
        proof=dump_golden(_proof(outputs, captions)),
        facts={
            "max_tokens": spec.max_tokens,
            "dimension": spec.dimension,
            "image_size": spec.image_size,
            "num_classes": len(image_set.classes),
            "num_golden": len(chosen),
            "num_golden_pictures": len(files),
        },
    )


def calibration(encoder: Encoder, tower: str, texts: Sequence[str], params: Mapping[str, Any]) -> Sequence[Item]:
    """Captions first, then other texts; or the images of the calibration split."""
    image_set = _image_set(params)
    if tower == IMAGE:
        files = [data for data, _ in image_set.splits["calibration"][: len(texts)]]
        return images.encode(encoder, files, "calibration")
    return encoder.encode_texts(golden_texts(image_set.classes, texts, len(texts)), truncate="END")


def golden_texts(captions: Sequence[str], texts: Sequence[str], num_texts: int) -> tuple[str, ...]:
    """Captions, evenly spread where there are more than asked for; then other texts, which are longer."""
    if len(captions) >= num_texts:
        return tuple(captions[i] for i in np.linspace(0, len(captions) - 1, num_texts).round().astype(int))
    chosen = (*captions, *texts[: num_texts - len(captions)])
    if len(chosen) < num_texts:
        raise ExportError(f"num_texts is {num_texts}, there are {len(chosen)} captions and texts; ask for fewer")
    return chosen


def _image_set(params: Mapping[str, Any]) -> images.ImageSet:
    return images.read(Path(params.get("source_base", ".")) / params["pictures"])


def _spec(models: Mapping[str, Any], folder: Path, params: Mapping[str, Any], pad_token_id: int | None) -> ClipSpec:
    shapes = msgspec.convert(params["shapes"], ShapeRange)
    config = json.loads((folder / "config.json").read_bytes())
    positions = {"max_position_embeddings": 77, **config["text_config"]}["max_position_embeddings"]  # CLIP's default
    max_tokens = params.get("max_tokens")
    problems = []
    if shapes.max[1] > positions:
        problems.append(f"shapes.max has {shapes.max[1]} tokens, the model has positions for {positions}; lower it")
    if problem := golden.max_tokens_problem(max_tokens, shapes.max[1]):
        problems.append(problem)
    side = models[IMAGE].graph.input[0].type.tensor_type.shape.dim[2].dim_value
    mean, std = clip_preprocessing.normalization(folder, side, problems)
    if problems:
        raise ExportError("\n".join([f"{folder.name}:", *(f"  {problem}" for problem in problems)]))
    return ClipSpec(
        served_name=params["served_name"],
        release=params["release"],
        dimension=models[TEXT].graph.output[0].type.tensor_type.shape.dim[1].dim_value,
        max_tokens=max_tokens or shapes.max[1],
        pad_token_id=pad_token_id or 0,
        text_input_names=tuple(value.name for value in models[TEXT].graph.input),
        image_size=side,
        image_mean=mean,
        image_std=std,
        num_patches=(side // config["vision_config"].get("patch_size", 32)) ** 2,
        max_images=shapes.max[0],
        shapes=shapes,
    )


def _small(data: bytes, side: int) -> bytes:
    """An image as it is, or smaller when it is large: golden images ship in every container image."""
    if len(data) <= MAX_RAW_BYTES:
        return data
    from PIL import Image, ImageOps

    with Image.open(io.BytesIO(data)) as opened:
        image = ImageOps.contain(opened.convert("RGB"), (2 * side, 2 * side))
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


def _proof(outputs: GoldenClip, captions: Sequence[str]) -> GoldenClip:
    """The part that ships: some of the images, their captions, and other texts from the shortest to the longest.

    captions: of each golden image.
    """
    files = golden.spread(len(outputs.images), NUM_PROOF_IMAGES)
    own = {outputs.texts.index(captions[i]) for i in files if captions[i] in outputs.texts}
    by_length = sorted(set(range(len(outputs.texts))) - own, key=lambda i: (len(outputs.texts[i]), i))
    texts = sorted(own | {by_length[i] for i in golden.spread(len(by_length), golden.NUM_PROOF_ITEMS - len(own))})
    return GoldenClip(
        texts=tuple(outputs.texts[i] for i in texts),
        text_vectors=outputs.text_vectors[texts],
        images=tuple(outputs.images[i] for i in files),
        image_vectors=outputs.image_vectors[files],
    )
