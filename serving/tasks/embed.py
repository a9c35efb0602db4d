"""Turn texts into token arrays for an embedding engine: the one module that knows this task's files and limits."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import msgspec
import numpy as np
from numpy.typing import NDArray

from serving.backends.base import Inputs
from serving.profile import ShapeRange

Truncate = Literal["NONE", "START", "END"]
InputType = Literal["query", "passage"]

# A text longer than this cannot fit and is not worth tokenising (the limit text-embeddings-inference uses).
MAX_CHARS_PER_TOKEN = 250


class EmbedSpec(msgspec.Struct, frozen=True, kw_only=True):
    """task.json: what the server must know about an embedding model beside its engine and tokenizer."""

    task: Literal["embed"] = "embed"
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


class TextTooLong(ValueError):
    """A text that does not fit and may not be truncated. Clients look for 'exceeds maximum allowed token size'."""

    def __init__(
        self, *, index: int, length: int, limit: int, unit: Literal["tokens", "characters"] = "tokens"
    ) -> None:
        self.index, self.length, self.limit, self.unit = index, length, limit, unit
        counted = f"{length}" if unit == "tokens" else f"{length} characters"
        super().__init__(
            f"Input length {counted} exceeds maximum allowed token size {limit} (input {index}); "
            "shorten the text, or set truncate to 'END' or 'START'"
        )


class TextWithoutTokens(ValueError):
    """A text of which the tokenizer keeps nothing: there is no vector for it."""

    def __init__(self, index: int) -> None:
        self.index = index
        super().__init__(f"input {index} is empty or holds no token of this model; send some text")


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
    """N arrays (T_i,) -> the engine's inputs, each (N, T): padded on the right to the longest text.

    multiple: T is rounded up to it, as far as the engine allows: fewer shapes, for backends that prepare each anew.
    """
    width = max(round_up(max(item.size for item in items), multiple, spec), spec.shapes.min[1])
    ids = np.full((len(items), width), spec.pad_token_id, dtype=np.int64)
    mask = np.zeros_like(ids)
    for row, item in enumerate(items):
        ids[row, : item.size] = item
        mask[row, : item.size] = 1
    arrays = {"input_ids": ids, "attention_mask": mask, "token_type_ids": np.zeros_like(ids)}
    return {name: arrays[name] for name in spec.input_names}


def round_up(num_tokens: int, multiple: int, spec: EmbedSpec) -> int:
    """The next multiple, but no more than the engine's largest T, nor less than the tokens."""
    return max(num_tokens, min(-(-num_tokens // multiple) * multiple, spec.shapes.max[1]))


class BadVectors(Exception):
    """The engine gave vectors that must not be served; never the request's fault."""


def check_vectors(vectors: NDArray[np.float32], num_texts: int, spec: EmbedSpec) -> None:
    """Raise BadVectors unless they are (num_texts, D), finite and nowhere all zero."""
    if vectors.shape != (num_texts, spec.dimension):
        raise BadVectors(f"the engine gave {vectors.shape} for {num_texts} texts of dimension {spec.dimension}")
    norms = np.linalg.norm(vectors, axis=1)
    bad = np.flatnonzero(~np.isfinite(norms) | (norms == 0))
    if bad.size:
        raise BadVectors(f"{bad.size} of {num_texts} vectors are zero or not finite, the first is {bad[0]}")


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
