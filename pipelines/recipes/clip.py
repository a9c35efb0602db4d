"""How the factory treats a CLIP model: two graphs, each with its pooling, projection and norm inside."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from pipelines.datasets import images as pictures
from pipelines.errors import ExportError
from pipelines.recipes import clip_towers
from serving.backends.base import Inputs
from serving.contract.profile import ShapeRange
from serving.tasks import base
from serving.tasks.clip import TASK, ClipSpec, Encoder, GoldenClip, dump_golden

TOWERS = TASK.towers
to_onnx = clip_towers.to_onnx
NUM_PROOF_TEXTS, NUM_PROOF_PICTURES = 32, 8  # they ship, and every server's start runs them
MAX_PIXEL_DIFFERENCE = 1.0  # of 255, between the server's preprocessing and the model's own
MAX_RAW_BYTES = 64 * 2**10  # a golden picture larger than this is stored smaller


def write_files(
    models: Mapping[str, Any], folder: Path, params: Mapping[str, Any], texts: Mapping[str, Any], output_dir: Path
) -> dict[str, Any]:
    """Write tokenizer.json (as it is), task.json, golden.json and proof.json."""
    from transformers import AutoTokenizer

    if not (folder / "tokenizer.json").is_file():
        raise ExportError(
            f"{folder.name}: tokenizer.json is missing, so that no fast tokenizer can read its texts; "
            "make it with AutoTokenizer.from_pretrained(…, use_fast=True).save_pretrained(…)"
        )
    raw_tokenizer = (folder / "tokenizer.json").read_bytes()
    tokenizer = AutoTokenizer.from_pretrained(folder, use_fast=True, trust_remote_code=False, local_files_only=True)
    spec = _spec(models, folder, params, tokenizer.pad_token_id)
    encoder = Encoder(raw_tokenizer, spec)
    shown = pictures.read(Path(params.get("source_base", ".")) / params["pictures"])
    golden_texts = _golden_texts(shown.classes, texts["golden"], params["golden"]["num_texts"])
    golden_pictures = tuple(_small(data, spec.image_size) for data, _ in shown.splits["golden"])
    captions = [shown.classes[label] for _, label in shown.splits["golden"]]
    pixels = pictures.encode(encoder, golden_pictures, "golden")
    _check_tokens(encoder, golden_texts, tokenizer, spec.max_tokens)
    _check_pixels(pixels, golden_pictures, folder, spec)
    model = clip_towers.load(folder)
    golden = GoldenClip(
        texts=golden_texts,
        text_vectors=clip_towers.text_reference(model, encoder.encode_texts(golden_texts, truncate="END")),
        images=golden_pictures,
        image_vectors=clip_towers.image_reference(model, pixels),
    )
    (output_dir / "tokenizer.json").write_bytes(raw_tokenizer)
    (output_dir / "task.json").write_bytes(spec.dump())
    (output_dir / "golden.json").write_bytes(dump_golden(golden))
    (output_dir / "proof.json").write_bytes(dump_golden(_part(golden, captions)))
    return {
        "max_tokens": spec.max_tokens,
        "dimension": spec.dimension,
        "image_size": spec.image_size,
        "num_classes": len(shown.classes),
        "num_golden": len(golden.texts),
        "num_golden_pictures": len(golden.images),
    }


def calibration(
    tower: str,
    tokenizer: bytes,
    task: bytes,
    texts: Sequence[str],
    num_texts: int,
    max_tokens: int,
    params: Mapping[str, Any],
) -> list[Inputs]:
    """One text or picture a batch: captions first, then other texts; or the pictures of the calibration split."""
    spec = ClipSpec.load(task)
    short = msgspec.structs.replace(spec, max_tokens=min(max_tokens, spec.max_tokens))
    towers = {each.name: each for each in spec.towers}
    encoder = Encoder(tokenizer, short)
    shown = pictures.read(Path(params.get("source_base", ".")) / params["pictures"])
    items: Sequence[base.Item]
    if tower == "image":
        items = pictures.encode(encoder, [data for data, _ in shown.splits["calibration"][:num_texts]], "calibration")
    else:
        items = encoder.encode_texts(_golden_texts(shown.classes, texts, num_texts), truncate="END")
    return [towers[tower].collate([item]) for item in items]


def _spec(models: Mapping[str, Any], folder: Path, params: Mapping[str, Any], pad_token_id: int | None) -> ClipSpec:
    shapes = msgspec.convert(params["shapes"], ShapeRange)
    config = _read_json(folder / "config.json")
    longest = {"max_position_embeddings": 77, **config["text_config"]}["max_position_embeddings"]  # CLIP's default
    asked = params.get("max_tokens")
    problems = []
    if shapes.max[1] > longest:
        problems.append(f"shapes.max has {shapes.max[1]} tokens, the model has positions for {longest}; lower it")
    if asked is not None and asked > shapes.max[1]:
        problems.append(
            f"max_tokens is {asked}, shapes.max has {shapes.max[1]} tokens; lower the one or raise the other"
        )
    side = models["image"].graph.input[0].type.tensor_type.shape.dim[2].dim_value
    mean, std = _normalization(folder, side, problems)
    if problems:
        raise ExportError("\n".join([f"{folder.name}:", *(f"  {problem}" for problem in problems)]))
    return ClipSpec(
        served_name=params["served_name"],
        release=params["release"],
        dimension=models["text"].graph.output[0].type.tensor_type.shape.dim[1].dim_value,
        max_tokens=asked or shapes.max[1],
        pad_token_id=pad_token_id or 0,
        text_input_names=tuple(value.name for value in models["text"].graph.input),
        image_size=side,
        image_mean=mean,
        image_std=std,
        num_patches=(side // config["vision_config"].get("patch_size", 32)) ** 2,
        max_images=shapes.max[0],
        shapes=shapes,
    )


Channels = tuple[float, float, float]


def _normalization(folder: Path, side: int, problems: list[str]) -> tuple[Channels, Channels]:
    """Mean and deviation of each channel. Adds to `problems` every setting that the server's preprocessing has not."""
    from transformers import CLIPImageProcessor

    if not (folder / "preprocessor_config.json").is_file():
        problems.append("preprocessor_config.json is missing: it says how pictures become numbers")
        return (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)
    processor = CLIPImageProcessor.from_pretrained(folder, local_files_only=True)
    found = {
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
        for name, (value, expected) in found.items()
        if value != expected
    )
    mean, std = ((float(r), float(g), float(b)) for r, g, b in (processor.image_mean, processor.image_std))
    return mean, std


def _golden_texts(captions: Sequence[str], texts: Sequence[str], num_texts: int) -> tuple[str, ...]:
    """Captions, evenly spread where there are more than asked for; then other texts, which are longer."""
    if len(captions) >= num_texts:
        return tuple(captions[i] for i in np.linspace(0, len(captions) - 1, num_texts).round().astype(int))
    found = (*captions, *texts[: num_texts - len(captions)])
    if len(found) < num_texts:
        raise ExportError(f"num_texts is {num_texts}, there are {len(found)} captions and texts; ask for fewer")
    return found


def _small(data: bytes, side: int) -> bytes:
    """A picture as it is, or smaller when it is large: golden pictures ship in every image."""
    if len(data) <= MAX_RAW_BYTES:
        return data
    from PIL import Image, ImageOps

    with Image.open(io.BytesIO(data)) as opened:
        picture = ImageOps.contain(opened.convert("RGB"), (2 * side, 2 * side))
    buffer = io.BytesIO()
    picture.save(buffer, "PNG")
    return buffer.getvalue()


def _check_tokens(encoder: Encoder, texts: Sequence[str], tokenizer: Any, max_tokens: int) -> None:
    """The server reads tokenizer.json alone; some models keep settings elsewhere, and would be served wrong."""
    expected = tokenizer(list(texts), truncation=True, max_length=max_tokens)["input_ids"]
    for text, ours, theirs in zip(texts, encoder.encode_texts(texts, truncate="END"), expected, strict=True):
        if ours.tolist() != list(theirs):
            raise ExportError(
                f"tokenizer.json alone gives other tokens than transformers for {text[:60]!r}: {ours[:8].tolist()}… "
                f"and {list(theirs[:8])}…; save the tokenizer again with save_pretrained, so that it is complete"
            )


def _check_pixels(pixels: Sequence[base.Item], images: Sequence[bytes], folder: Path, spec: ClipSpec) -> None:
    """The server preprocesses without Transformers: refuse a model whose own processor does it otherwise."""
    from PIL import Image
    from transformers import CLIPImageProcessor

    processor = CLIPImageProcessor.from_pretrained(folder, local_files_only=True)
    std = np.array(spec.image_std, dtype=np.float32).reshape(3, 1, 1)
    for index, (data, ours) in enumerate(zip(images, pixels, strict=True)):
        with Image.open(io.BytesIO(data)) as opened:
            theirs = processor(opened, return_tensors="np")["pixel_values"][0]
        difference = float(np.abs((ours - theirs) * std).max()) * 255
        if difference > MAX_PIXEL_DIFFERENCE * (1 + 1e-3):
            raise ExportError(
                f"{folder.name}: the server's pixels of golden picture {index} differ by {difference:.2f} of 255 from "
                "those of the model's own processor; see preprocessor_config.json for what it does otherwise"
            )


def _part(golden: GoldenClip, captions: Sequence[str]) -> GoldenClip:
    """What ships: some of the pictures, their captions, and other texts from the shortest to the longest.

    captions: of each golden picture.
    """
    images = _spread(len(golden.images), NUM_PROOF_PICTURES)
    own = {golden.texts.index(captions[i]) for i in images if captions[i] in golden.texts}
    by_length = sorted(set(range(len(golden.texts))) - own, key=lambda i: (len(golden.texts[i]), i))
    texts = sorted(own | {by_length[i] for i in _spread(len(by_length), NUM_PROOF_TEXTS - len(own))})
    return GoldenClip(
        texts=tuple(golden.texts[i] for i in texts),
        text_vectors=golden.text_vectors[texts],
        images=tuple(golden.images[i] for i in images),
        image_vectors=golden.image_vectors[images],
    )


def _spread(num: int, most: int) -> list[int]:
    """At most so many indices, from the first to the last."""
    return sorted({int(i) for i in np.linspace(0, num - 1, min(most, num)).round()})


def _read_json(path: Path) -> Any:
    return json.loads(path.read_bytes()) if path.is_file() else None
