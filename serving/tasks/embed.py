"""Turn texts into token arrays for an embedding engine: the one module that knows this task's files and limits."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from dataclasses import dataclass

import msgspec
import numpy as np
from numpy.typing import NDArray

from serving.backends.base import Inputs
from serving.contract.profile import ShapeRange
from serving.tasks.text import MAX_CHARS_PER_TOKEN, InputType, TextTooLong, TextTower, TextWithoutTokens, Truncate


class EmbedSpec(msgspec.Struct, frozen=True, kw_only=True, tag_field="task", tag="embed"):
    """task.json: what the server must know about an embedding model beside its engine and tokenizer."""

    served_name: str  # "all-minilm-l6-v2"
    release: str  # "0.1.0"
    dimension: int  # D
    max_tokens: int  # of one text, special tokens included
    pad_token_id: int
    input_names: tuple[str, ...]  # ("input_ids", "attention_mask", "token_type_ids")
    output_name: str = "embeddings"
    query_prefix: str = ""  # "query: "
    passage_prefix: str = ""
    shapes: ShapeRange
    matryoshka_dimensions: tuple[int, ...] = ()  # not empty: a request may ask for any dimension up to D
    int8_range: float = 0.0  # the largest component of the golden vectors; 0: no int8 or uint8 vectors

    @property
    def task(self) -> str:
        return "embed"

    @property
    def towers(self) -> tuple[TextTower, ...]:
        return (
            TextTower(
                dimension=self.dimension,
                pad_token_id=self.pad_token_id,
                input_names=self.input_names,
                shapes=self.shapes,
            ),
        )


def load_spec(data: bytes) -> EmbedSpec:
    """Read task.json. Raises msgspec.ValidationError or msgspec.DecodeError."""
    return msgspec.json.decode(data, type=EmbedSpec)


def dump_spec(spec: EmbedSpec) -> bytes:
    """Write task.json in canonical bytes."""
    return msgspec.json.encode(spec, order="sorted")


class Encoder:
    """Text to token ids. Not thread-safe: the tokenizer holds its truncation setting, so use one per thread."""

    def __init__(self, tokenizer: bytes, spec: EmbedSpec) -> None:
        from tokenizers import Tokenizer

        self._tokenizer = Tokenizer.from_buffer(tokenizer)
        self._tokenizer.no_padding()
        self._spec = spec
        self._num_special = self._tokenizer.num_special_tokens_to_add(False)

    def encode(
        self, texts: Sequence[str], *, truncate: Truncate = "NONE", input_type: InputType | None = None
    ) -> list[NDArray[np.int64]]:
        """N texts -> N arrays (T,) of token ids, special tokens included, in order.

        Raises TextTooLong (truncate NONE) and TextWithoutTokens.
        """
        limit, max_chars = self._spec.max_tokens, self._spec.max_tokens * MAX_CHARS_PER_TOKEN
        prefix = self._prefix(input_type)
        if truncate == "NONE":
            for index, text in enumerate(texts):
                if len(text) > max_chars:
                    raise TextTooLong(index=index, length=len(text), limit=limit, unit="characters")
            self._tokenizer.no_truncation()
        elif truncate == "END":
            texts = [text[:max_chars] for text in texts]
            self._tokenizer.enable_truncation(limit, direction="right")
        else:
            texts = [text[-max_chars:] for text in texts]
            if prefix:  # the model needs its prefix: make room for it instead of cutting it off
                texts = [self._tail(text, prefix) for text in texts]
            self._tokenizer.enable_truncation(limit, direction="right" if prefix else "left")
        encodings = self._tokenizer.encode_batch_fast([prefix + text for text in texts])
        items = [np.array(encoding.ids, dtype=np.int64) for encoding in encodings]
        for index, ids in enumerate(items):
            if ids.size == 0:
                raise TextWithoutTokens(index)
            if ids.size > limit:
                raise TextTooLong(index=index, length=int(ids.size), limit=limit)
        return items

    def _prefix(self, input_type: InputType | None) -> str:
        return {None: "", "query": self._spec.query_prefix, "passage": self._spec.passage_prefix}[input_type]

    def _tail(self, text: str, prefix: str) -> str:
        """The end of a text that fits behind its prefix."""
        self._tokenizer.no_truncation()
        num_prefix = len(self._tokenizer.encode(prefix, add_special_tokens=False).ids)
        offsets = self._tokenizer.encode(text, add_special_tokens=False).offsets
        num_kept = max(1, self._spec.max_tokens - self._num_special - num_prefix)
        return text if len(offsets) <= num_kept else text[offsets[-num_kept][0] :]


def collate(items: Sequence[NDArray[np.int64]], spec: EmbedSpec, *, multiple: int = 1) -> Inputs:
    """N arrays (T_i,) -> the engine's inputs, each (N, T). TextTower.collate of the spec."""
    return spec.towers[0].collate(items, multiple=multiple)


@dataclass(frozen=True, kw_only=True)
class Golden:
    """Golden outputs: texts and the vectors that the fp32 reference gave for them."""

    texts: tuple[str, ...]
    vectors: NDArray[np.float32]  # (N, D)


class _GoldenFile(msgspec.Struct, frozen=True, kw_only=True):
    texts: tuple[str, ...]
    dimension: int
    vectors: str  # base64 of little-endian float32 (N, D), C order


def load_golden(data: bytes) -> Golden:
    """Read golden.json or proof.json. Raises ValueError when its parts do not fit together."""
    file = msgspec.json.decode(data, type=_GoldenFile)
    flat = np.frombuffer(base64.b64decode(file.vectors, validate=True), dtype="<f4")
    if file.dimension < 1 or flat.size != len(file.texts) * file.dimension:
        raise ValueError(
            f"golden outputs hold {flat.size} numbers for {len(file.texts)} texts of dimension {file.dimension}"
        )
    return Golden(texts=file.texts, vectors=flat.reshape(len(file.texts), file.dimension).astype(np.float32))


def dump_golden(golden: Golden) -> bytes:
    """Write golden outputs in canonical bytes."""
    num_texts, dimension = golden.vectors.shape
    if num_texts != len(golden.texts):
        raise ValueError(f"{len(golden.texts)} texts with {num_texts} vectors")
    raw = np.ascontiguousarray(golden.vectors, dtype="<f4").tobytes()
    file = _GoldenFile(texts=golden.texts, dimension=dimension, vectors=base64.b64encode(raw).decode("ascii"))
    return msgspec.json.encode(file, order="sorted")
