"""Turn texts and pictures into arrays for CLIP's two engines: the one module that knows this task's files."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from dataclasses import dataclass, field

import msgspec
import numpy as np
from numpy.typing import NDArray

from serving.backends.base import Inputs
from serving.contract.profile import ShapeRange
from serving.tasks.base import Item, Tower
from serving.tasks.images import preprocess
from serving.tasks.text import MAX_CHARS_PER_TOKEN, TextTooLong, TextTower, TextWithoutTokens, Truncate

TEXT, IMAGE = "text", "image"


class ClipSpec(msgspec.Struct, frozen=True, kw_only=True, tag_field="task", tag="clip"):
    """task.json: what the server must know about a CLIP model beside its engines and tokenizer."""

    served_name: str
    release: str
    dimension: int  # D, of texts and pictures alike
    max_tokens: int
    pad_token_id: int
    text_input_names: tuple[str, ...]  # ("input_ids", "attention_mask")
    image_size: int  # S: pictures are (3, S, S)
    image_mean: tuple[float, float, float]
    image_std: tuple[float, float, float]
    num_patches: int  # what a picture costs, in tokens
    max_images: int  # of one batch
    shapes: ShapeRange  # (B, T) of the text engine

    @property
    def task(self) -> str:
        return "clip"

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
            dimension=self.dimension,
            image_size=self.image_size,
            num_patches=self.num_patches,
            max_batch=self.max_images,
        )
        return (text, image)


@dataclass(frozen=True, kw_only=True)
class ImageTower:
    """An engine that sees pictures, pixel_values (B, 3, S, S) float32. An item is (3, S, S)."""

    name: str = field(default=IMAGE, init=False)
    dimension: int
    image_size: int
    num_patches: int
    max_batch: int

    def collate(self, items: Sequence[Item], *, multiple: int = 1) -> Inputs:
        return {"pixel_values": np.stack(items).astype(np.float32, copy=False)}

    def cost(self, item: Item, *, multiple: int = 1) -> int:
        return self.num_patches

    def sample(self, num_items: int, num_tokens: int) -> list[Item]:
        return [np.zeros((3, self.image_size, self.image_size), dtype=np.float32)] * num_items


class Encoder:
    """Texts to token ids, pictures to pixels. Not thread-safe: use one per thread."""

    def __init__(self, tokenizer: bytes, spec: ClipSpec) -> None:
        from tokenizers import Tokenizer

        self._tokenizer = Tokenizer.from_buffer(tokenizer)
        self._tokenizer.no_padding()
        self._spec = spec

    def encode_texts(self, texts: Sequence[str], *, truncate: Truncate = "NONE") -> list[NDArray[np.int64]]:
        """N texts -> N arrays (T,), special tokens included. Raises TextTooLong and TextWithoutTokens."""
        limit, max_chars = self._spec.max_tokens, self._spec.max_tokens * MAX_CHARS_PER_TOKEN
        if truncate == "NONE":
            for index, text in enumerate(texts):
                if len(text) > max_chars:
                    raise TextTooLong(index=index, length=len(text), limit=limit, unit="characters")
            self._tokenizer.no_truncation()
        else:
            side = slice(None, max_chars) if truncate == "END" else slice(-max_chars, None)
            texts = [text[side] for text in texts]
            self._tokenizer.enable_truncation(limit, direction="right" if truncate == "END" else "left")
        items = [np.array(found.ids, dtype=np.int64) for found in self._tokenizer.encode_batch_fast(list(texts))]
        for index, ids in enumerate(items):
            if ids.size == 0:
                raise TextWithoutTokens(index)
            if ids.size > limit:
                raise TextTooLong(index=index, length=int(ids.size), limit=limit)
        return items

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
    text_vectors: NDArray[np.float32]  # (N, D)
    images: tuple[bytes, ...]  # PNG files
    image_vectors: NDArray[np.float32]  # (M, D)


class _GoldenFile(msgspec.Struct, frozen=True, kw_only=True):
    dimension: int
    texts: tuple[str, ...]
    text_vectors: str  # base64 of little-endian float32 (N, D), C order
    images: tuple[str, ...]  # base64 of PNG files
    image_vectors: str


def load_golden(data: bytes) -> GoldenClip:
    """Read golden.json or proof.json. Raises ValueError when its parts do not fit together."""
    file = msgspec.json.decode(data, type=_GoldenFile)
    images = tuple(base64.b64decode(image, validate=True) for image in file.images)
    return GoldenClip(
        texts=file.texts,
        text_vectors=_vectors(file.text_vectors, len(file.texts), file.dimension, "texts"),
        images=images,
        image_vectors=_vectors(file.image_vectors, len(images), file.dimension, "pictures"),
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
        text_vectors=_base64(np.ascontiguousarray(golden.text_vectors, dtype="<f4").tobytes()),
        images=tuple(_base64(image) for image in golden.images),
        image_vectors=_base64(np.ascontiguousarray(golden.image_vectors, dtype="<f4").tobytes()),
    )
    return msgspec.json.encode(file, order="sorted")


def _vectors(text: str, num_rows: int, dimension: int, what: str) -> NDArray[np.float32]:
    flat = np.frombuffer(base64.b64decode(text, validate=True), dtype="<f4")
    if dimension < 1 or flat.size != num_rows * dimension:
        raise ValueError(f"golden outputs hold {flat.size} numbers for {num_rows} {what} of dimension {dimension}")
    return flat.reshape(num_rows, dimension).astype(np.float32)


def _base64(data: bytes) -> str:
    return base64.b64encode(data).decode("ascii")
