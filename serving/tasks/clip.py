"""Turn texts and pictures into arrays for CLIP's two engines: the one module that knows this task's files."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from dataclasses import dataclass

import msgspec
import numpy as np
from numpy.typing import NDArray

from serving.tasks.base import Recorded, Spec, Task, Tower
from serving.tasks.golden import Rows, compare_vectors, dump_file, dump_rows, load_rows
from serving.tasks.images import preprocess
from serving.tasks.text import TextEncoder, Truncate
from serving.tasks.towers import ImageTower, TextTower

TEXT, IMAGE = "text", "image"


class ClipSpec(Spec, frozen=True, kw_only=True, tag="clip"):
    """task.json of a CLIP model."""

    dimension: int  # D, of texts and pictures alike
    text_input_names: tuple[str, ...]  # ("input_ids", "attention_mask")
    image_size: int  # S: pictures are (3, S, S)
    image_mean: tuple[float, float, float]
    image_std: tuple[float, float, float]
    num_patches: int  # what a picture costs, in tokens
    max_images: int  # of one batch

    @property
    def towers(self) -> tuple[Tower, ...]:
        text = TextTower(
            name=TEXT,
            dimension=self.dimension,
            pad_token_id=self.pad_token_id,
            input_names=self.text_input_names,
            shapes=self.shapes,
        )
        image = ImageTower(
            name=IMAGE,
            dimension=self.dimension,
            image_size=self.image_size,
            num_patches=self.num_patches,
            max_batch=self.max_images,
        )
        return (text, image)


class Encoder:
    """Texts to token ids, pictures to pixels. Use one per thread."""

    def __init__(self, tokenizer: bytes, spec: ClipSpec) -> None:
        self._texts, self._spec = TextEncoder(tokenizer, spec.max_tokens), spec

    def encode_texts(self, texts: Sequence[str], *, truncate: Truncate = "NONE") -> list[NDArray[np.int64]]:
        """N texts -> N arrays (T,), special tokens included. Raises TextTooLong and TextWithoutTokens."""
        return self._texts.encode(texts, truncate=truncate)

    def encode_images(self, images: Sequence[bytes]) -> list[NDArray[np.float32]]:
        """N files (PNG, JPEG or WebP) -> N arrays (3, S, S). Raises BadImage with the index of the first bad one."""
        spec = self._spec
        return [
            preprocess(data, index=index, size=spec.image_size, mean=spec.image_mean, std=spec.image_std)
            for index, data in enumerate(images)
        ]


@dataclass(frozen=True, kw_only=True)
class GoldenClip:
    """Golden outputs: captions and pictures, and the vectors that the fp32 reference gave for them."""

    texts: tuple[str, ...]
    text_vectors: Rows
    images: tuple[bytes, ...]  # PNG files
    image_vectors: Rows


class _GoldenFile(msgspec.Struct, frozen=True, kw_only=True):
    dimension: int
    texts: tuple[str, ...]
    text_vectors: str
    images: tuple[str, ...]  # base64 of PNG files
    image_vectors: str


def load_golden(data: bytes) -> GoldenClip:
    """Read golden.json or proof.json. Raises ValueError when its parts do not fit together."""
    file = msgspec.json.decode(data, type=_GoldenFile)
    images = tuple(base64.b64decode(image, validate=True) for image in file.images)
    return GoldenClip(
        texts=file.texts,
        text_vectors=load_rows(file.text_vectors, len(file.texts), file.dimension, "texts"),
        images=images,
        image_vectors=load_rows(file.image_vectors, len(images), file.dimension, "pictures"),
    )


def dump_golden(golden: GoldenClip) -> bytes:
    """Write golden outputs in canonical bytes."""
    dimension = golden.text_vectors.shape[1]
    wanted = ((len(golden.texts), dimension), (len(golden.images), dimension))
    if (golden.text_vectors.shape, golden.image_vectors.shape) != wanted:
        raise ValueError(f"vectors are {golden.text_vectors.shape} and {golden.image_vectors.shape}, not {wanted}")
    file = _GoldenFile(
        dimension=dimension,
        texts=golden.texts,
        text_vectors=dump_rows(golden.text_vectors),
        images=tuple(base64.b64encode(image).decode("ascii") for image in golden.images),
        image_vectors=dump_rows(golden.image_vectors),
    )
    return dump_file(file)


def _recorded(data: bytes, encoder: Encoder) -> tuple[Recorded, ...]:
    golden = load_golden(data)
    return (
        Recorded(TEXT, encoder.encode_texts(golden.texts, truncate="END"), golden.text_vectors),
        Recorded(IMAGE, encoder.encode_images(golden.images), golden.image_vectors),
    )


TASK = Task(spec=ClipSpec, towers=(TEXT, IMAGE), encoder=Encoder, recorded=_recorded, compare=compare_vectors)
