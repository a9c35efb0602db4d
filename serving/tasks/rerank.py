"""Turn a query and passages into token arrays for a cross-encoder: the one module that knows this task's files."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from dataclasses import dataclass

import msgspec
import numpy as np
from numpy.typing import NDArray

from serving.profile import ShapeRange
from serving.tasks.text import MAX_CHARS_PER_TOKEN, TextTooLong, TextTower, TextWithoutTokens, Truncate


class RerankSpec(msgspec.Struct, frozen=True, kw_only=True, tag_field="task", tag="rerank"):
    """task.json: what the server must know about a reranker beside its engine and tokenizer."""

    served_name: str
    release: str
    max_tokens: int  # of a query and its passage together, special tokens included
    pad_token_id: int
    input_names: tuple[str, ...]
    output_name: str = "scores"  # (B, 1) logits
    shapes: ShapeRange

    @property
    def task(self) -> str:
        return "rerank"

    @property
    def towers(self) -> tuple[TextTower, ...]:
        return (
            TextTower(dimension=1, pad_token_id=self.pad_token_id, input_names=self.input_names, shapes=self.shapes),
        )


class Encoder:
    """Pairs to token ids. Not thread-safe: the tokenizer holds its truncation setting, so use one per thread."""

    def __init__(self, tokenizer: bytes, spec: RerankSpec) -> None:
        from tokenizers import Tokenizer

        self._tokenizer = Tokenizer.from_buffer(tokenizer)
        self._tokenizer.no_padding()
        self._spec = spec
        self._num_special = self._tokenizer.num_special_tokens_to_add(True)

    def encode(self, query: str, passages: Sequence[str], *, truncate: Truncate = "NONE") -> list[NDArray[np.int64]]:
        """One query, N passages -> N arrays (2, T): ids and token types, in order.

        END cuts passages from the right, START from the left; the query is cut, on the same side, only when it
        leaves no room for one token of a passage. Raises TextTooLong and TextWithoutTokens, with the passage's index.
        """
        limit, max_chars = self._spec.max_tokens, self._spec.max_tokens * MAX_CHARS_PER_TOKEN
        if truncate == "NONE":
            for index, passage in enumerate(passages):
                if (length := len(query) + len(passage)) > max_chars:
                    raise TextTooLong(index=index, length=length, limit=limit, unit="characters")
            self._tokenizer.no_truncation()
        else:
            side = slice(None, max_chars) if truncate == "END" else slice(-max_chars, None)
            direction = "right" if truncate == "END" else "left"
            passages = [passage[side] for passage in passages]
            query = self._shortened(query[side], direction)
            self._tokenizer.enable_truncation(limit, strategy="only_second", direction=direction)
        encodings = self._tokenizer.encode_batch_fast([(query, passage) for passage in passages])
        items = []
        for index, encoding in enumerate(encodings):
            if len(encoding.ids) <= self._num_special:
                raise TextWithoutTokens(index)
            if len(encoding.ids) > limit:
                raise TextTooLong(index=index, length=len(encoding.ids), limit=limit)
            items.append(np.array([encoding.ids, encoding.type_ids], dtype=np.int64))
        return items

    def _shortened(self, query: str, direction: str) -> str:
        """The query, cut so that one token of a passage has room beside it."""
        self._tokenizer.no_truncation()
        offsets = self._tokenizer.encode(query, add_special_tokens=False).offsets
        room = max(1, self._spec.max_tokens - self._num_special - 1)
        if len(offsets) <= room:
            return query
        return query[: offsets[room - 1][1]] if direction == "right" else query[offsets[-room][0] :]


@dataclass(frozen=True, kw_only=True)
class GoldenPairs:
    """Golden outputs: pairs of query and passage, and the scores that the fp32 reference gave for them."""

    pairs: tuple[tuple[str, str], ...]
    scores: NDArray[np.float32]  # (N,)


class _GoldenFile(msgspec.Struct, frozen=True, kw_only=True):
    pairs: tuple[tuple[str, str], ...]
    scores: str  # base64 of little-endian float32 (N,)


def load_golden(data: bytes) -> GoldenPairs:
    """Read golden.json or proof.json. Raises ValueError when its parts do not fit together."""
    file = msgspec.json.decode(data, type=_GoldenFile)
    scores = np.frombuffer(base64.b64decode(file.scores, validate=True), dtype="<f4").astype(np.float32)
    if scores.size != len(file.pairs):
        raise ValueError(f"golden outputs hold {scores.size} scores for {len(file.pairs)} pairs")
    return GoldenPairs(pairs=file.pairs, scores=scores)


def dump_golden(golden: GoldenPairs) -> bytes:
    """Write golden outputs in canonical bytes."""
    if golden.scores.shape != (len(golden.pairs),):
        raise ValueError(f"{len(golden.pairs)} pairs with scores of shape {golden.scores.shape}")
    raw = np.ascontiguousarray(golden.scores, dtype="<f4").tobytes()
    return msgspec.json.encode(
        _GoldenFile(pairs=golden.pairs, scores=base64.b64encode(raw).decode("ascii")), order="sorted"
    )
